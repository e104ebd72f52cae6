"""NanoDet-g with the 80 names of COCO: a small closed-vocabulary detector for real footage."""
