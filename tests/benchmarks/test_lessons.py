"""What glip-mini is taught and asked: boxes and words must fit the street, whatever is cut out of it."""

from __future__ import annotations

import numpy as np
import pytest
import supervision as sv
import torch

from benchmarks.glip_mini.examination import examine, is_clear, questions
from benchmarks.glip_mini.lessons import CROP, NEAR, NEAR_UNTIL, SIZE, Lessons, to_batch
from benchmarks.glip_mini.vocabulary import street_words, vocabulary
from detectors.detector import detections
from detectors.glip.caption import BertTokenizer
from detectors.glip.model_files import PACKAGED, VOCABULARY
from streamer.street import StreetPicture, sample_picture
from streamer.street.dice import SeededDice
from streamer.street.words import COLOURS, KINDS, meaning_holds, parse_phrase


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    return BertTokenizer(PACKAGED / VOCABULARY)


@pytest.fixture(scope="module")
def lessons(tokenizer: BertTokenizer) -> Lessons:
    return Lessons(tokenizer, seed=4, batch=4)


def test_the_packaged_vocabulary_is_the_streets() -> None:
    assert (PACKAGED / VOCABULARY).read_text().split("\n")[:-1] == vocabulary()


def test_every_word_of_the_street_is_one_token_and_others_are_spelled(tokenizer: BertTokenizer) -> None:
    assert all(tokenizer.count(word) == 1 for word in street_words())
    assert tokenizer.encode("scooter").tokens == ["[CLS]", "s", "##c", "##o", "##o", "##t", "##e", "##r", "[SEP]"]


def test_words_that_were_never_learned_are_known(tokenizer: BertTokenizer) -> None:
    assert tokenizer.spelled("a red double-decker bus") == []
    assert tokenizer.spelled("a zebra with a scooter") == ["zebra", "scooter"]


def test_a_batch_is_known_by_its_number(lessons: Lessons) -> None:
    first, again, other = lessons(2), lessons(2), lessons(4)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.images, other.images)


def test_first_come_near_looks_then_also_crops_and_whole_pictures(lessons: Lessons) -> None:
    near, crops, whole = (20, 3, NEAR[1], NEAR[0]), (4, 3, CROP[1], CROP[0]), (1, 3, SIZE[1], SIZE[0])
    later = -(-NEAR_UNTIL // 32) * 8
    assert [tuple(lessons(number).images.shape) for number in range(4)] == [near] * 4
    shapes = [tuple(lessons(later + number).images.shape) for number in range(8)]
    assert shapes == [near, crops, crops, whole, crops, crops, crops, whole]


def test_a_near_look_shows_something_large(lessons: Lessons) -> None:
    taught = [lesson for number in range(3) for lesson in lessons.lessons(number)]
    largest = [max((lesson.boxes[:, 2:] - lesson.boxes[:, :2]).max(), 0) for lesson in taught if len(lesson.boxes)]
    assert len(largest) > 0.7 * len(taught)
    assert np.median(largest) > 0.4 * NEAR[0]


def test_every_box_lies_in_its_picture_and_carries_the_words_that_are_true_of_it(lessons: Lessons) -> None:
    taught = [lesson for number in (0, 1, *range(3000, 3006)) for lesson in lessons.lessons(number)]
    boxes = 0
    for lesson in taught:
        height, width, _ = lesson.image.shape
        assert np.all(lesson.boxes >= 0)
        assert np.all(lesson.boxes[:, [0, 2]] <= width)
        assert np.all(lesson.boxes[:, [1, 3]] <= height)
        assert np.all(lesson.boxes[:, 2:] > lesson.boxes[:, :2])
        for phrase in lesson.said:
            meaning = parse_phrase(phrase.text)
            assert meaning is not None
            for one in lesson.seen:
                assert meaning_holds(meaning, one.thing) == (one.thing.identity in phrase.identities)
        boxes += len(lesson.boxes)
    assert boxes > 20
    assert any(not phrase.identities for lesson in taught for phrase in lesson.said), "absent things are asked for"


def test_nearly_half_of_the_pictures_are_asked_for_everything_in_every_colour(lessons: Lessons) -> None:
    """Unclear or hidden things take some of the phrases out."""
    taught = [lesson for number in range(4) for lesson in lessons.lessons(number)]
    coloured = []
    for lesson in taught:
        meanings = {parse_phrase(phrase.text) for phrase in lesson.said}
        coloured.append(sum(meaning is not None and bool(meaning.colour) for meaning in meanings))
    assert 0.3 < np.mean([count > 20 for count in coloured]) < 0.6
    assert max(coloured) == sum(len(COLOURS[kind]) for kind in KINDS)


def test_tokens_point_at_the_phrases_of_each_box(lessons: Lessons, tokenizer: BertTokenizer) -> None:
    taught = lessons.lessons(0)
    batch = to_batch(taught, tokenizer)
    pieces = vocabulary()
    for row, (lesson, truth) in enumerate(zip(taught, batch.truths, strict=True)):
        words = [pieces[number] for number in batch.input_ids[row]]
        named = [one for one in lesson.seen if any(one.thing.identity in phrase.identities for phrase in lesson.said)]
        assert len(named) == len(truth.boxes)
        for one, tokens in zip(named, truth.tokens, strict=True):
            said = [words[place] for place in tokens.nonzero()[:, 0].tolist()]
            wanted = [
                word
                for phrase in lesson.said
                if one.thing.identity in phrase.identities
                for word in phrase.text.replace("-", " - ").split()
            ]
            assert said == wanted


def true_boxes(picture: StreetPicture, queries: list[str], colour_blind: bool = False) -> sv.Detections:
    """The answers of a perfect model of the street, or of one that does not distinguish colours."""
    boxes, labels = [], []
    for label, query in enumerate(queries):
        meaning = parse_phrase(query)
        assert meaning is not None
        for one in picture.truth.seen:
            kinds = one.thing.kind in meaning.kinds
            if is_clear(one) and (kinds if colour_blind else meaning_holds(meaning, one.thing, one.middle)):
                boxes.append(one.box)
                labels.append(label)
    return detections(boxes, np.full(len(boxes), 0.9), labels, queries)


def answers(colour_blind: bool):  # type: ignore[no-untyped-def]
    pictures = {sample_picture(11, index).image.tobytes(): sample_picture(11, index) for index in range(4)}
    return lambda image, queries: true_boxes(pictures[image.tobytes()], list(queries), colour_blind)


def test_who_knows_the_street_passes_with_full_marks() -> None:
    report = examine(answers(colour_blind=False), 4, 0.5, seed=11)
    assert report.phrases == report.kinds == report.recall == report.precision == pytest.approx(1)
    assert report.false_alarms == 0
    assert report.right_colour == report.refused_colours == 1


def test_the_colour_blind_pass_in_kinds_alone() -> None:
    report = examine(answers(colour_blind=True), 4, 0.5, seed=11)
    assert report.kinds == pytest.approx(1)
    assert report.phrases < 0.9
    assert report.false_alarms > 0.3
    assert report.right_colour < 0.8
    assert report.refused_colours == 0


def test_who_finds_nothing_fails() -> None:
    report = examine(lambda image, queries: detections([], [], [], queries), 2, 0.5, seed=11)
    assert report.phrases == report.kinds == report.recall == report.false_alarms == 0


def test_questions_name_present_and_absent_things_that_are_clear() -> None:
    for index in range(4):
        picture = sample_picture(11, index)
        for text in questions(picture, SeededDice(1, index)):
            meaning = parse_phrase(text)
            assert meaning is not None
            assert meaning.kinds <= set(KINDS)
            everything = [*picture.truth.seen, *picture.truth.hidden]
            assert None not in [meaning_holds(meaning, one.thing, one.middle) for one in everything]
