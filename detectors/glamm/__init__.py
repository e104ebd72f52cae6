"""GLaMM: words and masks tied together (Rasheed et al., CVPR 2024, arXiv:2311.03356).

`detectors.glamm.segmenter.Glamm` is what a user holds; importing this package loads nothing heavy.
"""
