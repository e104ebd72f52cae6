"""Training of GLIP: losses, targets, full and prompt tuning on COCO-shaped data."""
