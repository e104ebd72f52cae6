"""What a batch asks of the device, counted without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detectors.boxes import suppress
from detectors.detector import Request
from detectors.glip import detector
from detectors.glip.config import CONFIGS
from detectors.glip.detector import Glip, create
from detectors.glip.device_work import WaitFinder, WorkCounter, count_forward
from detectors.glip.modeling.dyhead import DyConv
from detectors.images import normalise
from tests.detectors.glip.conftest import CONFIG
from tests.detectors.glip.test_detector import picture, same


@pytest.fixture
def glip(folder: Path) -> Glip:
    return create("glip-mini", weights=folder, dtype="float32")


@pytest.mark.parametrize("inference", [False, True])
def test_the_finder_names_what_waits(inference: bool) -> None:
    values = torch.arange(6.0)
    for work in (
        lambda: torch.tensor([1.0, 2.0]),
        lambda: values.sum().item(),
        lambda: values[values > 2],
        lambda: values[[0, 3]],
        lambda: torch.where(values > 2, values, -1.0),
        lambda: bool(values.any()),
        lambda: values.nonzero(),
    ):
        with WaitFinder() as finder, torch.inference_mode(inference):
            work()
        assert finder.waits, "the work waits"
    with WaitFinder() as finder, torch.inference_mode(inference):
        values.masked_fill(values > 2, -1.0).index_select(0, torch.arange(3)).sum()
    assert finder.waits == []


def test_the_host_waits_for_nothing_but_the_result_of_a_batch(glip: Glip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector, "_is_readable", lambda _values: False)  # as on a GPU
    few, many = glip.prepare(["person"]), glip.prepare(["dog", "bus", "traffic light", "tree", "red car", "a dog"])
    several = glip.prepare([f"{a} {b}" for a in ("red", "a", "the") for b in ("dog", "bus", "car", "tree", "light")])
    assert len(several.chunks) > 1
    batches = [
        [Request(picture(64, 96, seed), few) for seed in range(2)],
        [Request(picture(64, 96, 2), few), Request(picture(70, 96, 3), several), Request(picture(64, 64, 4), many)],
    ]
    for requests in batches:
        before = glip._detect_batch(requests)  # constants are uploaded now
        with WaitFinder() as finder:
            found = glip._detect_batch(requests)
        uploads = [wait for wait in finder.waits if wait.endswith("_upload_image")]  # of pixels, from pinned memory
        assert finder.waits == uploads
        assert len(uploads) == len(requests)
        assert sum(map(len, found)) > 0
        assert all(same(a, b) for a, b in zip(before, found, strict=True))


def test_a_caption_combination_is_stacked_once(glip: Glip) -> None:
    prompts = [glip.prepare(["person"]), glip.prepare(["dog", "bus"])]
    requests = [Request(picture(64, 96, seed), prompt) for seed, prompt in enumerate(prompts)]
    glip.detect(requests)
    first = glip._stack_text((prompts[0].chunks[0], prompts[1].chunks[0]))
    glip.detect(requests)
    assert glip._stack_text((prompts[0].chunks[0], prompts[1].chunks[0])) is first
    assert glip._stack_text.cache_info().misses == 1
    assert glip._stack_text.cache_info().maxsize is not None


def test_statistics_of_pixels_are_usable_with_and_without_gradients() -> None:
    with torch.inference_mode():
        normalise(torch.zeros(3, 2, 2))
    pixels = torch.zeros(3, 2, 2, requires_grad=True)
    normalise(pixels).sum().backward()
    assert pixels.grad is not None


class LargestTensor(TorchDispatchMode):
    """Keeps the size in bytes of the largest tensor that was made."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        made = (part for part in tree_leaves(result) if isinstance(part, torch.Tensor))
        self.bytes = max([self.bytes, *(part.untyped_storage().nbytes() for part in made)])
        return result


def test_suppression_among_thousands_needs_one_matrix() -> None:
    count = 3000
    corner = torch.rand(1, count, 2) * 1000
    boxes, labels = torch.cat([corner, corner + 40], -1), torch.zeros(1, count, dtype=torch.int64)
    with LargestTensor() as largest:
        kept, settled = suppress(boxes, labels, torch.ones(1, count, dtype=torch.bool), 0.6)
    assert settled.all()
    assert 0 < int(kept.sum()) <= count
    assert largest.bytes <= 4 * count * count


def test_views_whose_first_look_was_not_enough_are_completed_one_by_one(
    glip: Glip, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [Request(picture(64, 96, seed), glip.prepare(["person", "dog", "bus"])) for seed in range(3)]
    want = glip.detect(requests)
    monkeypatch.setattr(detector, "_is_readable", lambda _values: False)
    monkeypatch.setattr(detector, "FIRST_LOOK", 20)
    for second in (30, 2000):
        monkeypatch.setattr(detector, "SECOND_LOOK", second)
        for whole, found in zip(want, glip.detect(requests), strict=True):
            assert same(whole, found)


def test_work_is_counted_without_views() -> None:
    with WorkCounter() as counter:
        x = torch.ones(4, 4)
        (x.mT.reshape(2, 8) + 1)[:, :3]
    assert counter.launches == {"ones": 1, "clone": 1, "add": 1} or counter.launches["add"] == 1
    assert counter.bytes["add"] == 2 * 16 * np.dtype(np.float32).itemsize


def test_a_forward_pass_is_few_launches() -> None:
    one, eight = (count_forward(CONFIGS["glip-tiny"], batch=batch) for batch in (1, 8))
    for work in (one, eight):
        assert work.launches["all"] < 1200
    assert one.launches["dynamic head"] == eight.launches["dynamic head"], "no copies for the batch's sake"
    assert eight.bytes / 8 < 5.5e9


def test_counting_leaves_no_tensors_without_data_behind(glip: Glip) -> None:
    request = Request(picture(64, 96), glip.prepare(["person"]))
    (before,) = glip.detect([request])
    count_forward(CONFIG, width=96, height=64, tokens=5)
    (after,) = glip.detect([request])
    assert same(before, after)


def test_prepared_weights_follow_changed_ones() -> None:
    torch.manual_seed(0)
    stage = DyConv(16, 4).eval()
    shapes = ((4, 6), (2, 3), (1, 2))
    regions = torch.randn(2, 32, 16)
    with torch.no_grad():
        before = stage(regions, shapes)
        assert torch.equal(stage(regions, shapes), before)
        conv = stage.DyConv[1].get_submodule("conv")
        conv.get_parameter("weight").mul_(-1)
        changed = stage(regions, shapes)
    assert not torch.allclose(changed, before)
    torch.testing.assert_close(stage(regions, shapes).detach(), changed)  # with gradients nothing is prepared
