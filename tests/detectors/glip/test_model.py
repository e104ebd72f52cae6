"""The network's parts, checked against their definitions."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from detectors.glip import runtime
from detectors.glip.config import CONFIGS, GlipConfig, GlipConfigError
from detectors.glip.convert import build_from, build_released
from detectors.glip.modeling.deform import Implementation, by_embedding_bag, by_torchvision, by_triton
from detectors.glip.modeling.deform_grid import Kernel, SamplingGrid, by_channel, by_tap, join_grids, make_grid
from detectors.glip.modeling.fusion import CrossAttention
from detectors.glip.modeling.model import GlipModel


@pytest.mark.parametrize(
    ("name", "manifest"),
    [
        ("glip-tiny-a", "glip_t_a"),
        ("glip-tiny-b", "glip_t"),
        ("glip-tiny-c", "glip_t"),
        ("glip-tiny", "glip_t"),
        ("glip-large", "glip_l"),
    ],
)
def test_a_released_model_has_exactly_the_keys_and_shapes_of_its_checkpoint(
    shared: Path, name: str, manifest: str
) -> None:
    wanted = json.loads((shared / "specs" / f"{manifest}_state_dict.json").read_text())
    assert {key: list(value.shape) for key, value in build_released(name).state_dict().items()} == wanted


def random_case(stride: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(stride)
    x = torch.randn(2, 5, 7, 4, generator=generator)  # (B, H, W, C)
    rows, columns = -(-5 // stride), -(-7 // stride)
    offsets = 3 * torch.randn(2, rows * columns, 18, generator=generator)  # many fall outside
    mask = torch.rand(2, rows * columns, 9, generator=generator)
    weight = torch.randn(6, 4, 3, 3, generator=generator)
    return x, offsets, mask, weight, torch.randn(6, generator=generator)


def convolve(
    how: Implementation,
    regions: Tensor,
    grid: SamplingGrid,
    offsets: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    """One convolution: regions (B, N, C), offsets (B, P, 18), mask (B, P, 9), weight (O, C, 3, 3) -> (B, P, O)."""
    batch = len(regions)

    def by_level(values: Tensor) -> Tensor:
        return torch.cat([part.flatten(0, 1) for part in torch.split(values, grid.sizes, dim=1)])

    kernel = Kernel(by_tap(weight), bias)
    (rows,) = how(regions, join_grids([grid], batch), by_level(offsets), by_level(mask), [kernel])
    levels = torch.split(rows, [batch * size for size in grid.sizes])
    return torch.cat([level.unflatten(0, (batch, -1)) for level in levels], dim=1)


def test_weights_by_tap_come_back_by_channel() -> None:
    weight = torch.randn(6, 4, 3, 3)
    assert torch.equal(by_channel(by_tap(weight)), weight)


def by_definition(
    x: torch.Tensor, offsets: torch.Tensor, mask: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, stride: int
) -> torch.Tensor:
    """Scalar by scalar, from the formula."""
    batch, height, width, _ = x.shape
    columns = -(-width // stride)
    out = bias.repeat(batch, offsets.shape[1], 1)
    for b in range(batch):
        for p in range(offsets.shape[1]):
            for k in range(9):
                y = p // columns * stride - 1 + k // 3 + float(offsets[b, p, 2 * k])
                z = p % columns * stride - 1 + k % 3 + float(offsets[b, p, 2 * k + 1])
                top, left = int(y // 1), int(z // 1)
                sample = torch.zeros(x.shape[-1])
                for r, wy in ((top, 1 - (y - top)), (top + 1, y - top)):
                    for c, wx in ((left, 1 - (z - left)), (left + 1, z - left)):
                        if 0 <= r < height and 0 <= c < width:
                            sample += wy * wx * x[b, r, c]
                out[b, p] += weight[:, :, k // 3, k % 3] @ sample * mask[b, p, k]
    return out


@pytest.mark.parametrize("stride", [1, 2])
def test_deformable_convolution_is_what_its_formula_says(stride: int) -> None:
    x, offsets, mask, weight, bias = random_case(stride)
    shape = (-(-5 // stride), -(-7 // stride))
    grid = make_grid([(5, 7)], [0], [shape], stride)
    mine = convolve(by_embedding_bag, x.flatten(1, 2), grid, offsets, mask, weight, bias)
    torch.testing.assert_close(mine, by_definition(x, offsets, mask, weight, bias, stride), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_without_offsets_it_is_an_ordinary_convolution_on_every_level(stride: int) -> None:
    shapes = [(6, 8), (3, 5)]
    maps = [torch.randn(2, 4, *shape) for shape in shapes]
    regions = torch.cat([level.flatten(2).mT for level in maps], dim=1)
    weight, bias = torch.randn(5, 4, 3, 3), torch.randn(5)
    want = [F.conv2d(level, weight, bias, stride=stride, padding=1) for level in maps]
    outputs = [(level.shape[2], level.shape[3]) for level in want]
    grid = make_grid(shapes, [0, 1], outputs, stride)
    positions = sum(height * width for height, width in outputs)
    offsets, mask = torch.zeros(2, positions, 18), torch.ones(2, positions, 9)
    mine = convolve(by_embedding_bag, regions, grid, offsets, mask, weight, bias)
    torch.testing.assert_close(mine, torch.cat([level.flatten(2).mT for level in want], dim=1), atol=1e-5, rtol=1e-4)


def definition_of_torchvision(
    x: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    stride: int,
    padding: int,
    mask: torch.Tensor,
) -> torch.Tensor:
    """torchvision's `deform_conv2d` as its documentation defines it: everything channels first."""
    assert padding == 1
    out = by_definition(
        x.permute(0, 2, 3, 1), offset.flatten(2).mT, mask.flatten(2).mT, weight, bias, stride
    )  # (B, P, O)
    return out.mT.reshape(len(x), -1, *offset.shape[2:])


@pytest.mark.parametrize("stride", [1, 2])
def test_by_torchvision_each_level_reaches_the_operator_as_it_wants_it(
    monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    package, ops = ModuleType("torchvision"), ModuleType("torchvision.ops")
    ops.deform_conv2d = definition_of_torchvision  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.ops", ops)
    shapes, outputs = [(6, 4), (3, 2)], [(-(-6 // stride), -(-4 // stride)), (-(-3 // stride), -(-2 // stride))]
    positions = sum(height * width for height, width in outputs)
    torch.manual_seed(1)
    regions, offsets, mask = torch.randn(2, 30, 4), torch.randn(2, positions, 18), torch.rand(2, positions, 9)
    weight, bias = torch.randn(5, 4, 3, 3), torch.randn(5)
    grid = make_grid(shapes, [0, 1], outputs, stride)
    inputs = (regions, grid, offsets, mask, weight, bias)
    mine, want = convolve(by_torchvision, *inputs), convolve(by_embedding_bag, *inputs)
    torch.testing.assert_close(mine, want, atol=1e-4, rtol=1e-4)


def test_an_implementation_whose_package_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = GlipModel(TINY)
    monkeypatch.setattr(runtime, "find_spec", lambda _package: None)
    with pytest.raises(ValueError, match="needs the package triton"):
        runtime.use_deform(model, "triton")
    with pytest.raises(ValueError, match="unknown deformable convolution 'magic'"):
        runtime.use_deform(model, "magic")


def test_on_a_gpu_a_kernel_that_fails_its_self_test_is_replaced_and_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu, cpu = torch.device("cuda:1"), torch.device("cpu")
    fault = runtime.find_deform_fault

    def on_cpu(name: str, _device: torch.device, dtype: torch.dtype) -> str:
        return fault(name, cpu, dtype)

    def use(way: Implementation | None, dtype: torch.dtype = torch.float32) -> str:
        monkeypatch.setattr(runtime, "find_deform_fault", on_cpu)
        monkeypatch.setattr(runtime, "find_spec", lambda _package: way)
        monkeypatch.setitem(runtime.IMPLEMENTATIONS, "triton", way or by_triton)
        caplog.clear()
        return runtime.choose_deform(gpu, dtype)

    def broken(*_inputs: object) -> list[Tensor]:
        raise RuntimeError("ptxas is not there\nsee the log")

    def off(*inputs: Any) -> list[Tensor]:
        return [part + 0.2 for part in by_embedding_bag(*inputs)]

    assert use(by_embedding_bag) == use(by_embedding_bag, torch.bfloat16) == "triton"
    assert caplog.text == ""
    for way, reason in (
        (None, "triton is not installed"),
        (broken, "RuntimeError: ptxas is not there)"),
        (off, "off by 0.2"),
    ):
        assert use(way) == "embedding-bag"
        assert "cuda:1 go by embedding bags" in caplog.text
        assert reason in caplog.text
    assert runtime.choose_deform(cpu, torch.bfloat16) == "embedding-bag"


def test_the_fused_kernel_equals_the_definition() -> None:
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs an NVIDIA GPU, or Triton with TRITON_INTERPRET=1")
    pytest.importorskip("triton")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # The interpreter multiplies bfloat16 as whole numbers, which the self-test must notice.
    for dtype in (torch.float32, torch.float16):
        assert runtime.find_deform_fault("triton", device, dtype) == ""
    assert bool(runtime.find_deform_fault("triton", device, torch.bfloat16)) == (device.type == "cpu")
    x, offsets, mask, weight, bias = (part.to(device) for part in random_case(1))
    grid = make_grid([(5, 7)], [0], [(5, 7)], 1, device)
    mine = convolve(by_triton, x.flatten(1, 2), grid, offsets, mask, weight, bias)
    want = by_definition(*(part.cpu() for part in (x, offsets, mask, weight, bias)), stride=1)
    torch.testing.assert_close(mine.cpu(), want, atol=1e-4, rtol=1e-4)


def test_offsets_and_mask_learn_through_the_deformable_convolution() -> None:
    x, offsets, mask, weight, bias = (part.double().float().requires_grad_() for part in random_case(1))
    grid = make_grid([(5, 7)], [0], [(5, 7)], 1)
    convolve(by_embedding_bag, x.flatten(1, 2), grid, offsets, mask, weight, bias).square().sum().backward()
    step = 1e-2
    with torch.no_grad():
        index = offsets.grad.abs().flatten().argmax() if offsets.grad is not None else torch.tensor(0)
        nudged = offsets.clone()
        nudged.view(-1)[index] += step
        before, after = (
            convolve(by_embedding_bag, x.flatten(1, 2), grid, value, mask, weight, bias).square().sum()
            for value in (offsets, nudged)
        )
    assert offsets.grad is not None
    assert mask.grad is not None
    assert mask.grad.abs().max() > 0
    torch.testing.assert_close((after - before) / step, offsets.grad.view(-1)[index], rtol=0.2, atol=1.0)


def written_out(
    attention: CrossAttention, v: torch.Tensor, words: torch.Tensor, mask: torch.Tensor
) -> list[torch.Tensor]:
    """The fusion's attention as the paper writes it, nothing folded."""

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], attention.heads, -1).transpose(1, 2)

    q, k = heads(attention.v_proj(v) * attention.scale), heads(attention.l_proj(words))
    scores = q @ k.mT
    to_words = scores.masked_fill(mask[:, None, None] == 0, -9e15).softmax(-1) @ heads(attention.values_l_proj(words))
    to_regions = scores.mT.softmax(-1) @ heads(attention.values_v_proj(v))
    return [
        attention.out_v_proj(to_words.transpose(1, 2).flatten(2)),
        attention.out_l_proj(to_regions.transpose(1, 2).flatten(2)),
    ]


@pytest.mark.parametrize("training", [False, True])
def test_folding_the_projections_into_the_words_changes_nothing(training: bool) -> None:
    torch.manual_seed(3)
    attention = CrossAttention(channels=12, width=10, dim=32, heads=4, dropout=0.0).train(training)
    v, words, mask = torch.randn(2, 50, 12), torch.randn(2, 7, 10), torch.ones(2, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    for mine, want in zip(attention(v, words, mask), written_out(attention, v, words, mask), strict=True):
        torch.testing.assert_close(mine, want, atol=1e-5, rtol=1e-4)


TINY = GlipConfig.from_plain(
    {
        "swin": {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 4},
        "text": {"vocab_size": 50, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16},
        "head": {"channels": 16, "num_convs": 2, "fusion_dim": 16, "fusion_heads": 2, "gn_groups": 4},
    }
)


def test_shorter_padding_of_the_text_changes_no_result() -> None:
    torch.manual_seed(0)
    model = GlipModel(TINY).eval()
    ids = torch.randint(5, 50, (1, 9))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        short = model(images, model.encode_text(ids, torch.ones_like(ids)))
        mask = F.pad(torch.ones_like(ids), (0, 40))
        long = model(images, model.encode_text(F.pad(ids, (0, 40)), mask))
    torch.testing.assert_close(short.logits, long.logits[..., :9], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(short.deltas, long.deltas, atol=1e-4, rtol=1e-4)


def test_training_drops_and_evaluation_repeats_itself() -> None:
    torch.manual_seed(0)
    model = GlipModel(TINY).train()
    ids = torch.randint(5, 50, (1, 9))
    images = torch.randn(1, 3, 64, 96)

    def logits() -> torch.Tensor:
        predictions = model(images, model.encode_text(ids, torch.ones_like(ids)))
        return predictions.logits

    assert not torch.equal(logits(), logits())
    model.eval()
    assert torch.equal(logits(), logits())


def test_sizes_that_cannot_be_built_are_refused_with_the_value() -> None:
    with pytest.raises(GlipConfigError, match="num_heads"):
        GlipConfig.from_plain({"swin": {"depths": [1, 1]}})
    with pytest.raises(GlipConfigError, match=r"head\.channels = 'wide'"):
        GlipConfig.from_plain({"head": {"channels": "wide"}})
    with pytest.raises(GlipConfigError, match="not a multiple of its 5 heads"):
        GlipConfig.from_plain({"swin": {"num_heads": [3, 6, 5, 24]}})


def test_a_description_comes_back_from_json_as_it_went() -> None:
    for config in CONFIGS.values():
        assert GlipConfig.from_plain(json.loads(json.dumps(config.to_plain()))) == config


def test_the_network_on_the_meta_device_keeps_its_constants_real() -> None:
    model = build_from(TINY)
    assert not model.rpn.anchor_generator.cell_anchors.get_buffer("0").is_meta
    assert not model.get_buffer("backbone.body.layers.0.blocks.0.attn.relative_position_index").is_meta
    assert model.rpn.head.bias0.is_meta
