"""Things that sentences name, with their places, and prompts of sentences."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from detectors.detector import Prompt, PromptError
from detectors.phrases import find_phrases, locate_phrases, prepare_sentence, require_phrases


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("two people carry a ladder past a red car", "two people | a ladder | a red car"),
        ("a man in a blue shirt rides a bicycle down the street", "a man | a blue shirt | a bicycle | the street"),
        ("a cyclist without a helmet passes a bus stop", "a cyclist | a helmet | a bus stop"),
        ("a bus stops at the bus stop", "a bus | the bus stop"),
        ("three dogs chase a ball across the grass", "three dogs | a ball | the grass"),
        ("an old woman with a walking stick crosses the road", "an old woman | a walking stick | the road"),
        ("forklift carrying pallets in a warehouse", "forklift | pallets | a warehouse"),
        ("a person without wearing a helmet", "a person | a helmet"),
        ("a fire truck with flashing lights", "a fire truck | flashing lights"),
        ("white car parked in front of a fire hydrant", "white car | a fire hydrant"),
        ("a group of people walking across a busy street", "a group of people | a busy street"),
        ("People hoist a sofa into a moving van", "People | a sofa | a moving van"),
        ("There is a dog lying on the sofa", "a dog | the sofa"),
        ("A man, a woman and two children are waiting.", "A man | a woman | two children"),
        ("a man gives the woman a book", "a man | the woman | a book"),
        ("an overturned trash can", "an overturned trash can"),
        ("someone leaves a backpack next to the ticket machine", "someone | a backpack | the ticket machine"),
        ("A man in green holds a guitar", "A man | a guitar"),
        ("red car", "red car"),
        ("running", ""),
        ("", ""),
    ],
)
def test_things_that_a_sentence_names(sentence: str, expected: str) -> None:
    assert " | ".join(phrase.text for phrase in find_phrases(sentence)) == expected


def test_places_are_those_of_the_text_and_repeated_things_share_a_phrase() -> None:
    sentence = "A dog chases a cat;  a dog sleeps."
    dog, cat = find_phrases(sentence)
    assert [sentence[start:end] for start, end in dog.spans] == ["A dog", "a dog"]
    assert [sentence[start:end] for start, end in cat.spans] == ["a cat"]


def test_given_phrases_stand_as_whole_words() -> None:
    (man,) = locate_phrases("a woman and a man", ["man"])
    assert man.spans == ((14, 17),)
    with pytest.raises(PromptError, match="'bus' is not in the text"):
        locate_phrases("a woman and a man", ["bus"])


def test_a_sentence_without_things_is_refused_with_an_example() -> None:
    with pytest.raises(PromptError, match=r"'running' names nothing.*such as"):
        require_phrases("running")


class PlainDetector:
    threshold = 0.5

    def prepare(self, queries: Sequence[str]) -> Prompt:
        return Prompt(tuple(queries))

    def detect(self, requests: Sequence[object]) -> list[object]:
        return []


class ReadingDetector(PlainDetector):
    def prepare_text(
        self, text: str, phrases: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]] | None = None
    ) -> Prompt:
        assert spans is not None
        return Prompt(tuple(text[start:end] for places in spans for start, end in places))


@pytest.mark.parametrize("detector", [PlainDetector(), ReadingDetector()])
def test_each_phrase_is_a_query_of_detectors_that_read_sentences_and_of_others(detector: PlainDetector) -> None:
    sentence = "two people carry a ladder"
    prompt = prepare_sentence(detector, sentence, require_phrases(sentence))  # type: ignore[arg-type]
    assert prompt.queries == ("two people", "a ladder")
