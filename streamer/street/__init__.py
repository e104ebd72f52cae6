"""The synthetic street: a seeded little world whose every frame is exactly known.

`Street` gives pictures and truth by frame number, `sample` a fresh scene for every number;
`streamer.sources.street.StreetSource` is a stream of it.
"""

from streamer.street.street import Picture, Street, sample
from streamer.street.truth import Seen, StreetEvent, Truth
from streamer.street.world import Scenario, Thing

__all__ = ["Picture", "Scenario", "Seen", "Street", "StreetEvent", "Thing", "Truth", "sample"]
