"""How fast GLaMM is here: seconds of each part, and what memory and fixed answers save over plain generation.

    python benchmarks/glamm.py                    # the released size on a GPU, in bfloat16
    python benchmarks/glamm.py --layers 2         # the language model cut to 2 of its 32 layers, for a laptop

Weights are random: the time does not depend on them. Writes benchmarks/results/glamm.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from detectors.glamm import weights
from detectors.glamm.config import GlammConfig
from detectors.glamm.model import ChatTurn, GlammModel
from detectors.glamm.sam import resize_masks

OPENING, QUESTION, REFERRING, ANSWER = 36, 40, 22, 5
"""Tokens before the image, of the describing question, of a referring one, and of its answer up to `[SEG]`."""
DESCRIPTION = 100
RESULTS = Path(__file__).parent / "results" / "glamm.md"


@dataclass(frozen=True)
class Timing:
    what: str
    seconds: float
    note: str = ""


class Bench:
    def __init__(self, model: GlammModel, repeats: int) -> None:
        self.model = model
        self.repeats = repeats
        self.timings: list[Timing] = []
        config = model.config
        self.clip_side, self.sam_side = config.clip_vision.image_size, config.sam.image_size
        width = config.llm.hidden_size
        self._embedding: torch.Tensor | None = None
        self.words = torch.randn(OPENING + QUESTION, width, device=model.device, dtype=model.dtype)

    def clip_pixels(self, count: int = 1) -> torch.Tensor:
        side = self.clip_side
        return torch.randn(count, 3, side, side, device=self.model.device, dtype=self.model.dtype)

    def sam_pixels(self, count: int = 1) -> torch.Tensor:
        side = self.sam_side
        return torch.randn(count, 3, side, side, device=self.model.device, dtype=self.model.dtype)

    def time(self, what: str, work: Callable[[], object], note: str = "", repeats: int | None = None) -> float:
        """Median seconds of `work`, after one run to warm up where it is repeated."""
        times = []
        repeats = repeats or self.repeats
        for _ in range(repeats + (repeats > 1)):
            self._wait()
            start = time.perf_counter()
            work()
            self._wait()
            times.append(time.perf_counter() - start)
        seconds = statistics.median(times[1:] or times)
        self.timings.append(Timing(what, seconds, note))
        print(f"{what:60} {seconds:9.3f} s  {note}", flush=True)
        return seconds

    def _wait(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()

    def embeddings(self, count: int = 1) -> torch.Tensor:
        """SAM's view of `count` images; on a CPU computed once, as it would hide everything else."""
        if self.model.device.type == "cuda":
            parts = [min(4, count - start) for start in range(0, count, 4)]
            return torch.cat([self.model.sam.get_image_embeddings(self.sam_pixels(part)) for part in parts])
        if self._embedding is None:
            self._embedding = self.model.sam.get_image_embeddings(self.sam_pixels())
        return self._embedding.expand(count, -1, -1, -1)

    def opening(self, count: int = 1) -> torch.Tensor:
        patches = self.model.encode_images(self.clip_pixels(count)).patches
        return torch.cat([self.words[:OPENING].expand(count, -1, -1), patches], dim=1)

    def turn(self, memory: object, length: int) -> ChatTurn:
        return ChatTurn(memory, self.words[:length])  # type: ignore[arg-type]

    def masks(self, embedding: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        logits, _ = self.model.mask_logits(embedding, states)
        return resize_masks(logits, self.sam_side, (576, 1024), (1080, 1920)) > 0

    @torch.inference_mode()
    def run(self, plain_tokens: int) -> None:
        model = self.model
        self.time("CLIP and projector, one image", lambda: model.encode_images(self.clip_pixels()))
        sam = self.time("SAM image encoder, one image", lambda: model.sam.get_image_embeddings(self.sam_pixels()))
        sam = sam if model.device.type == "cuda" else 0.0
        levels = model.encode_images(self.clip_pixels()).levels
        pyramid = model.region_encoder.pyramid(levels)
        self.time("region pyramid, one image", lambda: model.region_encoder.pyramid(levels))
        boxes = [torch.tensor([[0.1, 0.1, 0.5, 0.6]] * 8)]
        self.time("8 regions from the pyramid", lambda: model.regions(pyramid, boxes))
        opening = self.opening()
        self.time(f"reading the image, {opening.shape[1]} positions", lambda: model.read_opening(opening))
        (memory,) = model.read_opening(opening)
        embedding = self.embeddings()

        def forced(count: int = 1) -> torch.Tensor:
            turns = [self.turn(memory, REFERRING + ANSWER)] * count
            return self.masks(embedding, torch.stack([row[-1] for row in model.read(turns)]))

        def everything() -> torch.Tensor:
            (own,) = model.read_opening(self.opening())
            states = model.read([self.turn(own, REFERRING + ANSWER)])[0][-1:]
            return self.masks(self.embeddings(), states)

        def generated() -> torch.Tensor:
            (own,) = model.read_opening(self.opening())
            (answer,) = model.generate([self.turn(own, REFERRING)], ANSWER + 1)
            return self.masks(self.embeddings(), answer.states[-1:])

        def plain(tokens: int, length: int) -> None:
            """As released: every token reads everything again, from the image on."""
            row = self.words[:length]
            for _ in range(tokens):
                hidden = model(torch.cat([self.opening()[0], row])[None])
                row = torch.cat([row, hidden[0, -1:].to(row.dtype)])
            self.masks(self.embeddings(), hidden[0, -1:])

        one = self.time("one referring mask, all from the image, answer forced", everything)
        made = self.time("the same, answer generated with memory", generated)
        self.timings[-1] = replace(self.timings[-1], note=f"{made / one:.1f} times the forced one")
        slow = self.time("the same, generated as released (no memory)", lambda: plain(ANSWER + 1, REFERRING), repeats=1)
        self.timings[-1] = replace(self.timings[-1], note=f"{slow / one:.1f} times the forced one")
        another = self.time("one more mask on an image that was seen", forced)
        eight = self.time("8 more masks on an image that was seen", lambda: forced(8))
        self.timings[-1] = replace(self.timings[-1], note=f"{8 / eight:.1f} masks/s; one by one {1 / another:.1f}/s")

        def batch(count: int) -> None:
            memories = model.read_opening(self.opening(count))
            states = model.read([self.turn(each, REFERRING + ANSWER) for each in memories])
            embeddings = self.embeddings(count)
            for place in range(count):
                self.masks(embeddings[place : place + 1], states[place][-1:])

        together = self.time(
            "8 images, one forced mask each, batch 8", lambda: batch(8), repeats=max(1, self.repeats // 2)
        )
        self.timings[-1] = replace(self.timings[-1], note=f"{8 / together:.2f} images/s; one by one {1 / one:.2f}/s")

        def describe(tokens: int = DESCRIPTION) -> None:
            (own,) = model.read_opening(self.opening())
            model.generate([self.turn(own, QUESTION)], tokens)
            self.masks(self.embeddings(), self.words[:4])

        def write(count: int) -> None:
            model.generate([self.turn(memory, QUESTION)] * count, DESCRIPTION)

        described = self.time(f"a description of {DESCRIPTION} tokens with 4 masks", describe)
        for count in (1, 8):
            seconds = self.time(f"{DESCRIPTION} tokens, batch {count}", lambda count=count: write(count))  # type: ignore[misc]
            self.timings[-1] = replace(self.timings[-1], note=f"{count * DESCRIPTION / seconds:.1f} tokens/s")
        slow = self.time(f"{plain_tokens} tokens as released", lambda: plain(plain_tokens, QUESTION), repeats=1)
        rate = plain_tokens / max(slow - sam, 1e-9)
        note = f"{rate:.2f} tokens/s; the description would take {DESCRIPTION / rate + sam:.0f} s, not {described:.1f}"
        self.timings[-1] = replace(self.timings[-1], note=note)


def random_model(config: GlammConfig, device: str, dtype: torch.dtype) -> GlammModel:
    """Weights that keep activations finite, made where they are used."""
    with torch.device("meta"):
        model = GlammModel(config)
    model = model.to(dtype).to_empty(device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    # no answer may end early: the end mark is never chosen
    model.config = replace(config, tokens=replace(config.tokens, eos=-1))
    model.fill_buffers(torch.device(device))
    return model.eval().requires_grad_(False)


def table(bench: Bench, reported: str) -> str:
    rows = "\n".join(f"| {timing.what} | {timing.seconds:.3f} | {timing.note} |" for timing in bench.timings)
    return f"# GLaMM speed\n\n{reported}\n\n| what | seconds | |\n| --- | ---: | --- |\n{rows}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--layers", type=int, default=32, help="of the language model")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plain-tokens", type=int, default=10, help="generated the way of the released code")
    options = parser.parse_args()
    config = GlammConfig()
    config = replace(config, llm=replace(config.llm, num_hidden_layers=options.layers))
    dtype = getattr(torch, options.dtype)
    needed = weights.memory(config, dtype)
    weights.require_memory(needed, options.device)
    model = random_model(config, options.device, dtype)
    bench = Bench(model, options.repeats)
    bench.run(options.plain_tokens)
    where = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{platform.machine()} CPU"
    threads = "" if options.device.startswith("cuda") else f", {torch.get_num_threads()} of {os.cpu_count()} threads"
    reported = (
        f"{where}{threads}, {options.dtype}, torch {torch.__version__}, released size"
        + ("" if options.layers == 32 else f" but the language model cut to {options.layers} of 32 layers")
        + f", {needed}, median of {options.repeats}"
        + ("" if options.device.startswith("cuda") else "; from the first mask on without SAM's image encoder")
        + ". By `python benchmarks/glamm.py`."
    )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(table(bench, reported))


if __name__ == "__main__":
    main()
