"""The street as a film: pictures, truth and events by frame number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from streamer.street.dice import SeededDice
from streamer.street.truth import Place, SeenObject, StreetEvent, StreetTruth, TruthWatch, foot_point
from streamer.street.world import ObjectState, Scenario, StreetWorld

if TYPE_CHECKING:
    from streamer.street.painter import FigureSilhouette, StreetPainter
    from streamer.street.sketch import SketchFigure

LEAST_AREA = 4
"""Whatever shows fewer pixels is hidden."""


class StreetPicture(NamedTuple):
    """A frame, (H, W, 3) BGR uint8, and what is in it."""

    image: npt.NDArray[np.uint8]
    truth: StreetTruth


@dataclass
class Street:
    """One street, one camera, `fps` frames a second. Every frame stands for itself: ask for any, in any order.

    The same seed, size and scenario give the same pixels and the same truth everywhere. Not for several threads at
    once.
    """

    seed: int
    size: tuple[int, int] = (640, 384)
    fps: float = 25.0
    scenario: Scenario = field(default_factory=Scenario)

    @cached_property
    def world(self) -> StreetWorld:
        return StreetWorld(self.seed, self.size, self.scenario)

    @cached_property
    def _painter(self) -> StreetPainter:
        from streamer.street.painter import StreetPainter

        return StreetPainter(self.world)

    def time_s(self, index: int) -> float:
        return index / self.fps

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        """The picture alone, (H, W, 3) BGR."""
        time_s = self.time_s(index)
        return self._painter.paint(time_s, self._painter.figures(time_s))

    def truth(self, index: int) -> StreetTruth:
        """What is in the picture, without painting it."""
        return self._label_truth(index, self._painter.figures(self.time_s(index)))

    def picture(self, index: int) -> StreetPicture:
        drawn = self._painter.figures(self.time_s(index))
        return StreetPicture(self._painter.paint(self.time_s(index), drawn), self._label_truth(index, drawn))

    def events(
        self,
        duration_s: float,
        lines: Mapping[str, Place] | None = None,
        zones: Mapping[str, Place] | None = None,
    ) -> list[StreetEvent]:
        """Line crossings, zone entries and exits of the first `duration_s` seconds, in order of time."""
        events = TruthWatch(self.world, lines or {}, zones or {}).between(0.0, duration_s, 1.0 / self.fps)
        return [replace(event, visibility=self._event_visibility(event)) for event in events]

    def _event_visibility(self, event: StreetEvent) -> float:
        truth = self.truth(int(event.time_s * self.fps + 0.5))
        return next((one.visibility for one in truth.seen if one.thing.identity == event.identity), 0.0)

    def _label_truth(self, index: int, drawn: list[tuple[ObjectState, SketchFigure]]) -> StreetTruth:
        labels, shapes = self._painter.labels(drawn)
        seen: list[SeenObject] = []
        hidden: list[SeenObject] = []
        for order, position in enumerate(reversed(range(len(drawn)))):
            shape = shapes[position]
            if shape is None:
                continue
            one = self._seen_object(drawn[position][0], shape, labels, position + 1, order)
            if one is not None:
                (seen if one.area >= LEAST_AREA else hidden).append(one)
        return StreetTruth(index, self.time_s(index), self.size, tuple(seen), tuple(hidden))

    def _seen_object(
        self, state: ObjectState, shape: FigureSilhouette, labels: npt.NDArray[np.uint8], label: int, order: int
    ) -> SeenObject | None:
        import cv2

        camera = self.world.camera
        height, width = shape.mask.shape
        full = shape.left, shape.top, shape.left + width, shape.top + height
        x0, y0 = max(full[0], 0), max(full[1], 0)
        x1, y1 = min(full[2], camera.width), min(full[3], camera.height)
        point = foot_point(state, camera)
        if x0 >= x1 or y0 >= y1:
            return None
        if point is None:  # the last pixels of something whose solid has left already
            point = (x0 + x1) / 2 / camera.width, y1 / camera.height
        visible = labels[y0:y1, x0:x1] == label
        left, top, wide, tall = cv2.boundingRect(visible.view(np.uint8))
        patch = visible[top : top + tall, left : left + wide].copy()
        area = int(np.count_nonzero(patch))
        return SeenObject(
            thing=state.thing,
            box=(x0 + left, y0 + top, x0 + left + wide, y0 + top + tall),
            full_box=full,
            visibility=area / int(np.count_nonzero(shape.mask)),
            area=area,
            depth=camera.depth(state.x, state.z),
            order=order,
            foot=point,
            moves=state.bearing != "stand" and "parked" not in state.thing.attributes,
            patch=patch,
            size=self.size,
        )


def sample_picture(
    seed: int, index: int, size: tuple[int, int] = (640, 384), scenario: Scenario | None = None
) -> StreetPicture:
    """Picture `index` of an endless set for training: every one shows another street at another moment."""
    from streamer.street.painter import moment_seed

    street = Street(moment_seed(seed, index), size, fps=1000.0, scenario=scenario or Scenario())
    return street.picture(SeededDice(seed, 61, index).whole(0, 600_000))
