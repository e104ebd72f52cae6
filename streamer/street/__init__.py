"""The synthetic street: a seeded little world whose every frame is exactly known.

`Street` gives pictures and truth by frame number, `sample` a fresh scene for every number, `StreetSource` a stream.
"""

from streamer.street.source import StreetSource
from streamer.street.street import Picture, Street, sample
from streamer.street.truth import Seen, StreetEvent, Truth
from streamer.street.world import Scenario, Thing

__all__ = ["Picture", "Scenario", "Seen", "Street", "StreetEvent", "StreetSource", "Thing", "Truth", "sample"]
