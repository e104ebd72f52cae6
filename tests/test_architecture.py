"""The arrows of the design: who may import whom, read from the source files, and what loads at start-up."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("streamer", "detectors", "trackers", "sinks")

# library -> the only places that may import it
RESERVED = {
    "torch": ("detectors/",),
    "transformers": ("detectors/",),
    "av": ("streamer/sources/", "streamer/recorders/"),
    "kafka": ("sinks/kafka/",),
    "obstore": ("streamer/object_store.py",),
    "ray": ("streamer/cluster/",),
    "fastapi": ("streamer/web/",),
    "mcp": ("streamer/web/mcp_server.py",),
    "uvicorn": ("streamer/web/",),
}
HEAVY = ("torch", "transformers", "supervision", "cv2", "av", "kafka", "fastapi", "mcp", "ray", "obstore")


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere in it."""
    package = ".".join(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in {package}: write the whole name"
            yield node.module or ""


def belongs(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("package", ["detectors", "trackers", "sinks"])
def test_the_libraries_know_neither_the_application_nor_one_another(package: str):
    others = [other for other in PACKAGES if other != package]
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules()
        if path.relative_to(ROOT).parts[0] == package
        for name in imports(path)
        if any(belongs(name, other) for other in others)
    ]
    assert wrong == []


def test_glip_and_glamm_never_import_each_other():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules()
        for mine, other in (("glip", "glamm"), ("glamm", "glip"))
        if path.is_relative_to(ROOT / "detectors" / mine)
        for name in imports(path)
        if belongs(name, f"detectors.{other}")
    ]
    assert wrong == []


@pytest.mark.parametrize(("library", "places"), RESERVED.items())
def test_a_library_is_imported_only_where_it_belongs(library: str, places: tuple[str, ...]):
    wrong = [
        str(path.relative_to(ROOT))
        for path in modules()
        if any(belongs(name, library) for name in imports(path)) and not str(path.relative_to(ROOT)).startswith(places)
    ]
    assert wrong == []


def test_every_reserved_place_exists():
    assert [place for places in RESERVED.values() for place in places if not (ROOT / place).exists()] == []


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def import_graph() -> dict[str, set[str]]:
    """The modules that each module imports anywhere in it, late and type-checking imports included."""
    known = {module_name(path) for path in modules()}
    graph: dict[str, set[str]] = {}
    for path in modules():
        name = module_name(path)
        graph[name] = {target for target in imported_modules(path, known) if target != name}
    return graph


def imported_modules(path: Path, known: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known:
                    yield inner
                elif node.module in known:
                    yield node.module


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one import circle in order, or an empty list."""
    done: set[str] = set()
    for start in graph:
        trail: list[str] = []
        stack: list[tuple[str, Iterator[str]]] = [(start, iter(sorted(graph[start])))] if start not in done else []
        if stack:
            trail.append(start)
        while stack:
            name, rest = stack[-1]
            following = next(rest, None)
            if following is None:
                stack.pop()
                done.add(trail.pop())
                del name
            elif following in trail:
                return [*trail[trail.index(following) :], following]
            elif following not in done:
                trail.append(following)
                stack.append((following, iter(sorted(graph[following]))))
    return []


def test_a_circle_is_found():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_modules_import_one_another_in_a_circle():
    assert find_circle(import_graph()) == []


def loaded_by(code: str) -> set[str]:
    """The heavy libraries that a fresh interpreter has loaded after running `code`."""
    report = f"{code}\nimport sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_loads_nothing_heavy(package: str):
    assert loaded_by(f"import {package}") == set()


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom streamer.cli import app\nsys.argv = ['groundstream', '--help']\n"
        "try:\n    app()\nexcept SystemExit:\n    pass"
    )
    assert loaded_by(code) == set()
