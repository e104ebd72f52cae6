"""Recorders: what a job keeps of every frame of a stream (MOT text, COCO, annotated video)."""
