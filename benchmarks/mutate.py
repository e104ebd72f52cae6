"""Mutation test of GLIP's assembly: how many spoiled lines the tests of this repository notice.

    python benchmarks/mutate.py [--sample N] [--seed N] [--tests PATH...]

Named mutations are faults that users would meet: a released constant, the order of colours, an anchor. `--sample` adds
mutations made by rule (a comparison, an operator, a number, min for max), drawn at random from `MODULES`. Each is
applied to a copy of the repository, and the tests run there without any reference material beside it. The share of
survivors and their list are written to benchmarks/results/mutate.md; the exit code is 1 when a named one survives.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "mutate.md"
COPIED = ("detectors", "trackers", "sinks", "streamer", "benchmarks", "tests", "pyproject.toml", "groundstream.py")
TESTS = [f"tests/detectors/glip/test_{name}.py" for name in ("released_constants", "postprocess", "assembly")]
TESTS.append("tests/detectors/glip/test_conformance.py::TestGlipMini::test_red_is_red_and_not_blue")
MODULES = (
    "detectors/boxes.py",
    "detectors/images.py",
    *(f"detectors/glip/{name}.py" for name in ("postprocess", "processor", "modeling/anchors", "modeling/scores")),
)
TIMEOUT = 300  # seconds of one test run; a mutation that hangs is noticed


@dataclass(frozen=True)
class Mutation:
    """One replacement in one file; `start` is where `old` stands, or -1 where it stands once."""

    name: str
    path: str
    old: str
    new: str
    start: int = -1

    def apply(self, folder: Path) -> None:
        """Raises `ValueError` when the text is not in the file exactly once and no place is given."""
        file = folder / self.path
        text = file.read_text()
        if self.start < 0 and text.count(self.old) != 1:
            raise ValueError(f"mutation {self.name!r}: {self.old!r} stands {text.count(self.old)} times in {self.path}")
        start = text.index(self.old) if self.start < 0 else self.start
        file.write_text(text[:start] + self.new + text[start + len(self.old) :])


NAMED = (
    Mutation("MEAN made MAX", "detectors/glip/config.py", 'aggregate: str = "MEAN"', 'aggregate: str = "MAX"'),
    Mutation("800 made 640", "detectors/glip/config.py", "min_side: int = 800", "min_side: int = 640"),
    Mutation("suppression at 0.5", "detectors/glip/config.py", "nms_iou: float = 0.6", "nms_iou: float = 0.5"),
    Mutation("anchors half a pixel off", "detectors/glip/modeling/anchors.py", "(stride - 1) / 2", "stride / 2"),
    Mutation("anchors one wider", "detectors/glip/modeling/anchors.py", "(size - 1) / 2", "size / 2"),
    Mutation("no clamp of growth", "detectors/glip/modeling/anchors.py", ".clamp(max=LARGEST_GROWTH)", ""),
    Mutation(
        "red and blue exchanged", "detectors/glip/processor.py", "tensor.expand(-1", "tensor.flip(-1).expand(-1"
    ),
    Mutation("boxes not scaled back", "detectors/glip/detector.py", "rows[:, :4] * scale", "rows[:, :4]"),
    Mutation("no antialias", "detectors/images.py", 'mode="bilinear", antialias=True)[0]\n', 'mode="bilinear")[0]\n'),
    Mutation("centerness left out", "detectors/glip/postprocess.py", ".pow(rule.centerness_weight)[", ".pow(0)["),
    Mutation("suppression over all labels", "detectors/boxes.py", "overlap & (", "overlap | 0 * ("),
    Mutation("boxes not clipped", "detectors/glip/postprocess.py", "clip(decode(deltas, anchors[region]), sizes)",
             "decode(deltas, anchors[region])"),
    Mutation("offsets not read again", "detectors/glip/modeling/dyhead.py", "reread(buffer, math.prod(smaller))",
             "buffer.flatten(2).mT[:, : math.prod(smaller)]"),
    Mutation("padding not zero", "detectors/images.py", "images[0].new_zeros(", "images[0].new_ones("),
)  # fmt: skip

_SWAPS = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="),
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
}  # fmt: skip
_NAMES = {"minimum": "maximum", "maximum": "minimum", "amax": "amin", "floor": "ceil", "any": "all", "all": "any"}


def make_mutations(path: str, text: str) -> Iterator[Mutation]:
    """Every mutation by rule of a module's code; texts and annotations are left alone."""
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    assert text.isascii(), f"{path}: offsets count bytes"

    def place(line: int, column: int) -> int:
        return starts[line - 1] + column

    def between(node: ast.expr, left: ast.expr, right: ast.expr, kind: type[ast.AST]) -> Iterator[Mutation]:
        if kind in _SWAPS and left.end_lineno and left.end_col_offset is not None:
            old, new = _SWAPS[kind]
            begin = place(left.end_lineno, left.end_col_offset)
            at = text.find(old, begin, place(right.lineno, right.col_offset))
            if at >= 0:
                yield Mutation(f"line {node.lineno}: {old} made {new}", path, old, new, at)

    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            yield from between(node, node.left, node.comparators[0], type(node.ops[0]))
        elif isinstance(node, ast.BinOp):
            yield from between(node, node.left, node.right, type(node.op))
        elif isinstance(node, ast.Attribute) and node.attr in _NAMES and node.end_lineno and node.end_col_offset:
            at, new = place(node.end_lineno, node.end_col_offset) - len(node.attr), _NAMES[node.attr]
            yield Mutation(f"line {node.lineno}: {node.attr} made {new}", path, node.attr, new, at)
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            old, new = ast.get_source_segment(text, node) or "", repr(node.value + 1)
            at = place(node.lineno, node.col_offset)
            yield Mutation(f"line {node.lineno}: {old} made {new}", path, old, new, at)


def run_tests(folder: Path, tests: Sequence[str]) -> tuple[bool, str]:
    """Whether the tests pass in a copy of the repository, and the last line that they print."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    variables = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return False, f"no end within {TIMEOUT} s"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode == 0, failed[0].split(" - ")[0] if failed else ""


def try_mutation(mutation: Mutation, folder: Path, tests: Sequence[str]) -> str:
    """The test that notices a mutation, "" when none does. The copy is left as it was."""
    file = folder / mutation.path
    before = file.read_text()
    mutation.apply(folder)
    try:
        survived, noticed = run_tests(folder, tests)
    finally:
        file.write_text(before)
    return "" if survived else noticed or "the run itself"


def write_report(found: Sequence[tuple[Mutation, str]], named: int, tests: Sequence[str]) -> str:
    def share(part: Sequence[tuple[Mutation, str]]) -> str:
        survivors = sum(not noticed for _, noticed in part)
        return f"{survivors} of {len(part)} survive" + (f" ({survivors / len(part):.0%})" if part else "")

    lines = [
        "# Mutations of GLIP",
        "",
        f"Made by `python benchmarks/mutate.py`; tests: {', '.join(test.rpartition('/')[2] for test in tests)}.",
        f"Named mutations: {share(found[:named])}. By rule, drawn at random: {share(found[named:])}.",
        "",
        "| mutation | file | noticed by |",
        "| --- | --- | --- |",
    ]
    for mutation, noticed in found:
        test = noticed.removeprefix("FAILED ").rpartition("/")[2] or "**nothing**"
        lines.append(f"| {mutation.name.replace('|', chr(92) + '|')} | {mutation.path} | {test} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sample", type=int, default=0, help="mutations by rule beside the named ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--named", type=int, default=len(NAMED), help="how many of the named ones")
    parser.add_argument("--tests", nargs="+", default=TESTS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    ruled = [mutation for path in MODULES for mutation in make_mutations(path, (ROOT / path).read_text())]
    drawn = random.Random(options.seed).sample(ruled, min(options.sample, len(ruled)))
    named = NAMED[: options.named]
    found = []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.mp4"))
            else:
                shutil.copy(ROOT / name, folder / name)
        passed, failed = run_tests(folder, options.tests)
        if not passed:
            print(f"the tests fail without any mutation: {failed}", file=sys.stderr)
            return 1
        for mutation in (*named, *drawn):
            found.append((mutation, try_mutation(mutation, folder, options.tests)))
            print(f"{mutation.path}: {mutation.name}: {found[-1][1] or 'SURVIVES'}", flush=True)
    options.out.write_text(write_report(found, len(named), options.tests))
    return int(any(not noticed for _, noticed in found[: len(named)]))


if __name__ == "__main__":
    sys.exit(main())
