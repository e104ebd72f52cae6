"""Comparison of this GLIP with reference tensors, stage by stage: `python -m detectors.glip.check FOLDER`."""
