"""Pictures of events: the best view of each track, written beside the frame path, and the folder that keeps them."""
