"""Speed measurement of a detector on this machine, with the time by stage."""

from __future__ import annotations

import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from detectors.detector import Detector, OptionError, Request
from detectors.glip.caption import BertTokenizer
from detectors.glip.config import CONFIGS, GlipConfig
from detectors.glip.detector import Glip
from detectors.glip.device_work import STAGES
from detectors.glip.modeling.linear import linear
from detectors.glip.modeling.model import GlipModel
from detectors.glip.runtime import use_huge_pages

REST = "the rest"  # upload, resizing, scores, suppression, download
WORDS = ("person", "bicycle", "car", "bus", "truck", "dog", "backpack", "umbrella", "suitcase", "bench")


@dataclass(frozen=True)
class DetectorSpeed:
    """Result of one measurement; rates are per second, memory in bytes, shares 0..1."""

    device: str
    dtype: str
    frames_per_s: float
    latency_p50_s: float
    latency_p99_s: float
    peak_memory: int
    shares: dict[str, float]  # of the time of a batch, by stage; empty where the stages are not known
    flops_per_frame: float | None  # multiplications and additions of matrix products and convolutions
    matrix_peak: float | None  # per second, of one large matrix product on this device

    @property
    def share_of_peak(self) -> float | None:
        if self.flops_per_frame is None or self.matrix_peak is None:
            return None
        return self.flops_per_frame * self.frames_per_s / self.matrix_peak


def random_glip(name: str, *, seed: int = 0, **options: Any) -> Glip:
    """A GLIP of a released size with random weights, for speed measurements only.

    Its scores are raised so that there are candidates for suppression.
    Raises `OptionError` for a name that is not of a released size.
    """
    if name not in CONFIGS:
        raise OptionError(f"random weights are made for {', '.join(CONFIGS)}, not for {name!r}")
    config: GlipConfig = CONFIGS[name]
    use_huge_pages()
    torch.manual_seed(seed)
    model = GlipModel(config).eval().requires_grad_(False)
    model.rpn.head.bias0.fill_(-2.0)
    with TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"
        vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS, *_number_pieces()]))
        return Glip(model, BertTokenizer(vocabulary), **options)


def _number_pieces() -> list[str]:
    return [*"0123456789", *(f"##{digit}" for digit in range(10))]


def sample_queries(count: int) -> list[str]:
    """`count` different queries."""
    return [word if not turn else f"{word} {turn}" for turn in range(count // len(WORDS) + 1) for word in WORDS][:count]


def measure_speed(
    detector: Detector, *, width: int, height: int, batch: int, asked: int, rounds: int, seed: int = 0
) -> DetectorSpeed:
    """Run `rounds` batches of random pictures after two for warming up. Latency is that of a whole batch."""
    pictures = np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    prompt = detector.prepare(sample_queries(asked))

    def detect_once() -> None:
        detector.detect([Request(picture, prompt, f"camera {number}") for number, picture in enumerate(pictures)])

    for _ in range(2):
        detect_once()
    device = detector.device if isinstance(detector, Glip) else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = [_time_once(detect_once, device) for _ in range(rounds)]
    cuda = device.type == "cuda"
    peak = (
        torch.cuda.max_memory_allocated(device) if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    glip = detector if isinstance(detector, Glip) else None
    return DetectorSpeed(
        device=torch.cuda.get_device_name(device) if cuda else f"CPU, {torch.get_num_threads()} threads",
        dtype=str(glip.precision.dtype).removeprefix("torch.") if glip else "its own",
        frames_per_s=batch / statistics.median(times),
        latency_p50_s=statistics.median(times),
        latency_p99_s=float(np.quantile(times, 0.99)),
        peak_memory=peak,
        shares=_stage_shares(glip, detect_once) if glip else {},
        flops_per_frame=_count_flops(detect_once) / batch if glip else None,
        matrix_peak=matrix_peak(device, glip.precision.dtype) if glip else None,
    )


def _time_once(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@contextmanager
def _watch_stages(glip: Glip, spent: dict[str, float]) -> Iterator[None]:
    """Add up the seconds of each stage; on a GPU every stage is synchronised."""
    started: list[float] = []

    def read_clock() -> float:
        if glip.device.type == "cuda":
            torch.cuda.synchronize(glip.device)
        return time.perf_counter()

    def end_stage(module: nn.Module, _inputs: object, _outputs: object) -> None:
        spent[STAGES[type(module)]] += read_clock() - started.pop()

    hooks = []
    for module in glip.model.modules():
        if type(module) in STAGES:
            hooks.append(module.register_forward_pre_hook(lambda _module, _inputs: started.append(read_clock())))
            hooks.append(module.register_forward_hook(end_stage))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _stage_shares(glip: Glip, detect_once: Callable[[], object]) -> dict[str, float]:
    spent: dict[str, float] = defaultdict(float)
    with _watch_stages(glip, spent):
        whole = _time_once(detect_once, glip.device)
    shares = {stage: spent[stage] / whole for stage in STAGES.values()}
    return {**shares, REST: max(1 - sum(shares.values()), 0.0)}


def _count_flops(detect_once: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        detect_once()
    return float(counter.get_total_flops())


def matrix_peak(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Multiplications and additions per second of one large matrix product, the best of some."""
    size = size or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    linear(a, b)
    return 2 * size**3 / min(_time_once(lambda: linear(a, b), device) for _ in range(5))
