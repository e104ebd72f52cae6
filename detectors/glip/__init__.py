"""GLIP: open-vocabulary detection by free text. Grounded Language-Image Pre-training, arXiv:2112.03857.

The network's parts are modules of tensors (`swin`, `fpn`, `text`, `fusion`, `dyhead`, `scores`), `model` plugs them
together, `detector` adapts them to pictures and queries.
"""
