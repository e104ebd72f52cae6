"""GLIP's network: modules that take and return tensors. GLIP, arXiv:2112.03857."""
