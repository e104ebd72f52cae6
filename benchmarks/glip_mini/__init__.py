"""The training recipe of glip-mini: lessons from the synthetic street, training, examination and model card."""
