"""The synthetic street: a seeded little world whose every frame is exactly known.

`Street` gives pictures and truth by frame number, `sample` a fresh scene for every number;
`streamer.sources.street.StreetSource` is a stream of it.
"""

from streamer.street.street import Street, StreetPicture, sample_picture
from streamer.street.truth import SeenObject, StreetEvent, StreetTruth
from streamer.street.world import Scenario, StreetObject

__all__ = [
    "Scenario",
    "SeenObject",
    "Street",
    "StreetEvent",
    "StreetObject",
    "StreetPicture",
    "StreetTruth",
    "sample_picture",
]
