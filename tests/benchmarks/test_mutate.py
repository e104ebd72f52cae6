"""The mutation test, on modules of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import mutate

CODE = "def grow(x, limit=3):\n    return x + 1 if x < limit else x\n"
TEST = "from grown import grow\n\n\ndef test_it():\n    assert grow(0) == 1\n    assert grow(4) == 4\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "grown.py").write_text(CODE)
    (tmp_path / "test_grown.py").write_text(TEST)
    return tmp_path


def test_mutations_by_rule_change_one_place_each() -> None:
    made = list(mutate.make_mutations("grown.py", CODE))
    assert {(one.old, one.new) for one in made} == {("+", "-"), ("<", "<="), ("3", "4"), ("1", "2")}
    for one in made:
        assert CODE[one.start : one.start + len(one.old)] == one.old


def test_noticed_and_unnoticed_mutations_are_distinguished_and_undone(folder: Path) -> None:
    made = {one.old: one for one in mutate.make_mutations("grown.py", CODE)}
    assert "test_grown.py::test_it" in mutate.try_mutation(made["+"], folder, ["test_grown.py"])
    assert mutate.try_mutation(made["<"], folder, ["test_grown.py"]) == ""
    assert (folder / "grown.py").read_text() == CODE


def test_every_named_mutation_finds_its_place() -> None:
    for mutation in mutate.NAMED:
        assert (mutate.ROOT / mutation.path).read_text().count(mutation.old) == 1, mutation.name


def test_a_mutation_without_its_text_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match="stands 0 times"):
        mutate.Mutation("lost", "grown.py", "y + 1", "y").apply(folder)


def test_the_report_gives_the_shares_of_survivors() -> None:
    noticed, lost = mutate.Mutation("a", "b.py", "+", "-"), mutate.Mutation("c", "d.py", "<", "<=")
    table = mutate.write_report([(noticed, "FAILED tests/x/test_b.py::test_it"), (lost, "")], 1, ["tests/x/test_b.py"])
    assert "Named mutations: 0 of 1 survive (0%). By rule, drawn at random: 1 of 1 survive (100%)." in table
    assert "| c | d.py | **nothing** |" in table
    assert "| a | b.py | test_b.py::test_it |" in table
