"""What is said of the street is true, and what is said to be absent is."""

from __future__ import annotations

import pytest

from streamer.street import sample_picture
from streamer.street import words as street_words
from streamer.street.dice import SeededDice
from streamer.street.words import (
    PhraseMeaning,
    absent_phrases,
    contrasting_phrases,
    ground_phrases,
    matching_objects,
    meaning_holds,
    parse_phrase,
    phrase_variants,
    say_meaning,
    true_phrases,
)

SIZE = (320, 192)


@pytest.fixture(scope="module")
def truths():
    return [sample_picture(31, index, SIZE).truth for index in range(20)]


def test_phrases_are_true_of_their_thing(truths):
    count = 0
    for truth in truths:
        for one in truth.seen:
            for text in true_phrases(one, truth.seen):
                meaning = parse_phrase(text)
                assert meaning is not None, text
                assert meaning_holds(meaning, one.thing, one.middle), text
                count += 1
    assert count > 500


def test_every_way_to_say_a_phrase_means_the_same(truths):
    texts = {text for truth in truths for one in truth.seen for text in true_phrases(one, truth.seen)}
    for text in texts:
        for variant in phrase_variants(text):
            assert parse_phrase(variant) == parse_phrase(text), (variant, text)


def test_absent_phrases_are_false_of_everything_in_the_picture(truths):
    wrong_colour = 0
    for number, truth in enumerate(truths):
        everything = [*truth.seen, *truth.hidden]
        texts = absent_phrases(everything, SeededDice(1, number), 12)
        assert len(texts) == 12
        for text in texts:
            assert matching_objects(text, everything) == [], text
            kinds = {one.thing.kind for one in everything}
            meaning = parse_phrase(text)
            assert meaning is not None
            wrong_colour += bool(meaning.colour) and meaning.kinds <= kinds
    assert wrong_colour > 30


def test_grounded_phrases_name_everything_they_are_true_of(truths):
    for number, truth in enumerate(truths):
        for grounding in ground_phrases(truth.seen, SeededDice(2, number), present=5, absent=5, hidden=truth.hidden):
            found = matching_objects(grounding.text, truth.seen)
            assert found is not None
            assert {one.thing.identity for one in found} == grounding.identities, grounding.text


def test_a_side_is_named_only_where_it_points_at_one_thing(truths):
    sided = 0
    for truth in truths:
        for one in truth.seen:
            for text in true_phrases(one, truth.seen):
                if text.endswith(("on the left", "on the right")):
                    assert matching_objects(text, truth.seen) == [one]
                    sided += 1
    assert sided > 5


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("Red cars", PhraseMeaning(frozenset({"car"}), colour="red")),
        ("the gray automobile", PhraseMeaning(frozenset({"car"}), colour="grey")),
        ("a parked blue car", PhraseMeaning(frozenset({"car"}), colour="blue", attributes=frozenset({"parked"}))),
        (
            "a green double-decker bus",
            PhraseMeaning(frozenset({"bus"}), colour="green", attributes=frozenset({"double-decker"})),
        ),
        ("a big bus", PhraseMeaning(frozenset({"bus"}), size="large")),
        ("people with umbrellas", None),
        (
            "a man in green with a hat",
            PhraseMeaning(frozenset({"person"}), "man", "green", attributes=frozenset({"hat"})),
        ),
        ("cyclists", PhraseMeaning(frozenset({"person"}), attributes=frozenset({"bicycle"}))),
        ("a dog on the left", PhraseMeaning(frozenset({"dog"}), side="left")),
        ("a zebra", None),
    ],
)
def test_texts_are_read(text, meaning):
    assert parse_phrase(text) == meaning


def test_articles_fit_their_words():
    orange = PhraseMeaning(frozenset({"car"}), colour="orange")
    assert say_meaning(orange) == "an orange car"
    assert say_meaning(orange, plural=True) == "orange cars"
    assert say_meaning(PhraseMeaning(frozenset({"person"}), sex="child"), article="the", plural=True) == "the children"


def test_a_text_outside_the_language_has_no_variants():
    with pytest.raises(ValueError, match="'a zebra' is not a phrase of the street"):
        phrase_variants("a zebra")


def test_every_kind_has_a_plain_name():
    assert {say_meaning(PhraseMeaning(frozenset({kind})), article="") for kind in street_words.KINDS} == set(
        street_words.KINDS
    )


def test_contrasts_differ_in_one_word_and_are_true_of_whom_they_name(truths):
    fields = ("kinds", "sex", "colour", "size", "attributes", "excluded")
    families = 0
    for index, truth in enumerate(truths):
        seen, hidden = truth.seen, truth.hidden
        said = contrasting_phrases(seen, SeededDice(5, index), hidden) if seen else []
        families += len(said) > 1
        meanings = [parse_phrase(one.text) for one in said]
        assert None not in meanings
        differing = {name for name in fields if len({getattr(meaning, name) for meaning in meanings}) > 1}
        assert len(differing) <= 1
        assert len(set(meanings)) == len(meanings)
        for one, meaning in zip(said, meanings, strict=True):
            true = {other.thing.identity for other in seen if meaning_holds(meaning, other.thing, other.middle)}
            assert true == one.identities
    assert families > 6
