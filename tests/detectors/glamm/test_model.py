from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from detectors.glamm.model import ChatTurn, GlammModel, mask_places
from detectors.glamm.processor import clip_pixels, inner_size, sam_pixels
from detectors.glamm.region import layer_indices, roi_align


@pytest.fixture(scope="module")
def model(tiny: ModuleType) -> GlammModel:
    return tiny.random_glamm().requires_grad_(False)


def ramp(size: int) -> torch.Tensor:
    """A map whose value is its column."""
    return torch.arange(size, dtype=torch.float32).expand(1, size, size)


def test_roi_align_reads_the_middle_of_each_bin() -> None:
    pooled = roi_align(ramp(8), torch.tensor([[2.0, 2.0, 6.0, 6.0]]), 1.0, bins=4, samples=2)
    assert pooled[0, 0, 0].tolist() == pytest.approx([2.0, 3.0, 4.0, 5.0])


def test_roi_align_gives_nothing_for_a_box_outside() -> None:
    assert float(roi_align(ramp(8) + 1, torch.tensor([[20.0, 20, 24, 24]]), 1.0, 2, 2).abs().max()) == 0


def test_a_box_over_the_whole_image_reads_two_thirds_of_it(model: GlammModel) -> None:
    """224 pixels of boxes against 336 of CLIP: what lies beyond cell 16 of 24 cannot be seen. Kept from training."""
    config = model.config.region_encoder
    maps = torch.zeros(1, 6, 6)
    maps[:, :, 5] = 1
    full = torch.tensor([[0.0, 0.0, 1.0, 1.0]]) * config.roi_base_size
    assert float(roi_align(maps, full, 1 / config.roi_strides[-1], 14, 2).max()) == 0


def test_the_released_region_encoder_reads_four_clip_layers() -> None:
    from detectors.glamm.config import RegionConfig

    assert layer_indices(RegionConfig(), -2, 24) == [14, 17, 20, 23]
    with pytest.raises(ValueError, match="do not fit CLIP"):
        layer_indices(RegionConfig(), -2, 5)


def test_the_state_before_the_mark_makes_the_mask() -> None:
    ids = torch.tensor([1, -200, 7, 99, 8, 99])
    assert mask_places(ids, seg=99, num_patches=36).tolist() == [2 + 35, 4 + 35]


def test_one_box_serves_every_mark_and_too_few_are_refused(model: GlammModel) -> None:
    ids = torch.full((3,), model.config.tokens.bbox)
    one = torch.rand(1, 64)
    assert torch.equal(model.embed_words(ids, one), one.expand(3, -1))
    many = torch.rand(5, 64)
    assert torch.equal(model.embed_words(ids, many), many[:3])
    with pytest.raises(ValueError, match="3 <bbox> in the text, but only 2 boxes"):
        model.embed_words(ids, torch.rand(2, 64))


def rows(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, 64, generator=generator) for length in lengths]


def test_rows_of_any_length_share_a_pass(model: GlammModel) -> None:
    prefix, *texts = rows(10, 3, 7, 5)
    (memory,) = model.read_opening(prefix[None])
    together = model.read([ChatTurn(memory, text) for text in texts])
    for text, states in zip(texts, together, strict=True):
        alone = model(torch.cat([prefix, text])[None])[0, 10:]
        torch.testing.assert_close(states, alone, rtol=1e-5, atol=1e-5)


def test_answers_do_not_depend_on_the_batch(model: GlammModel) -> None:
    prefix, other, *texts = rows(10, 10, 3, 7)
    memories = model.read_opening(torch.stack([prefix, other]))
    turns = [ChatTurn(memory, text) for memory, text in zip(memories, texts, strict=True)]
    together = model.generate(turns, 6)
    for turn, answer in zip(turns, together, strict=True):
        (alone,) = model.generate([turn], 6)
        assert torch.equal(alone.ids, answer.ids)
        torch.testing.assert_close(alone.states, answer.states, rtol=1e-5, atol=1e-5)


def test_memories_are_not_changed_by_reading(model: GlammModel) -> None:
    prefix, text = rows(10, 4)
    (memory,) = model.read_opening(prefix[None])
    first = model.generate([ChatTurn(memory, text)], 5)[0].ids
    assert torch.equal(model.generate([ChatTurn(memory, text)], 5)[0].ids, first)


def test_clip_sees_the_centre_and_sam_the_whole() -> None:
    image = np.zeros((40, 100, 3), np.uint8)
    image[:, :20] = 255
    assert float(clip_pixels(image, 84).max()) < 0  # the bright end is cut away
    padded = sam_pixels(image, 128)
    assert inner_size(40, 100, 128) == (51, 128)
    assert float(padded[:, 51:].abs().max()) == 0
    assert float(padded[0, 0, 0]) == pytest.approx((255 - 123.675) / 58.395)
