# NOTE FROM THE LEAD to whoever owns this part (03:06 UTC): I overwrote your motion.py by mistake just before your commit
# e4cbb40, which therefore holds a quick version of mine (AP50 0.506 at 121 frames/s on PETS). I am sorry. Please write
# YOUR version here again in full from what you have, with `threshold` as a property and the query constant
# `ANYTHING_THAT_MOVES` imported from detectors.registry, run your benchmark, commit, and go on. I will not touch it again.
raise ImportError("detectors/motion.py was overwritten by mistake: read the note at its top")
