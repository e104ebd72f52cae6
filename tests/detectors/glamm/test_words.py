"""Tokens, prompts and answers."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from detectors.detector import DetectorError, PromptError
from detectors.glamm import prompts
from detectors.glamm.parsing import parse, tidy
from detectors.glamm.tokenizer import LlamaTokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> LlamaTokenizer:
    return tiny.save_tokenizer(tmp_path_factory.mktemp("words") / "tokenizer.model")


def test_seven_tokens_stand_behind_the_vocabulary(tokenizer: LlamaTokenizer) -> None:
    assert tokenizer.encode("<im_start><im_end><bbox><point>[SEG]<p></p>") == list(range(440, 447))
    assert tokenizer.tokens.seg == 444


def test_the_image_is_a_placeholder_and_the_sentence_begins_once(tokenizer: LlamaTokenizer) -> None:
    ids = tokenizer.encode_prompt("a <im_start><image><im_end> b")
    assert ids[0] == 1
    assert ids.count(1) == 1
    assert ids[ids.index(-200) - 1 : ids.index(-200) + 2] == [440, -200, 441]


def test_space_beside_an_added_token_is_lost_but_not_beside_the_end_mark(tokenizer: LlamaTokenizer) -> None:
    assert tokenizer.encode("a [SEG] cat") == tokenizer.encode("a[SEG]cat")
    assert tokenizer.encode("a </s>") != tokenizer.encode("a</s>")


def test_words_after_a_mark_keep_their_leading_space(tokenizer: LlamaTokenizer) -> None:
    assert tokenizer.encode("<im_end>provides")[1:] == tokenizer.encode("provides")


def test_decoding_puts_the_space_before_the_words_that_an_end_mark_follows(tokenizer: LlamaTokenizer) -> None:
    assert tokenizer.decode([*tokenizer.encode("[SEG] cat"), 2]) == "[SEG]  cat</s>"
    assert tidy("ASSISTANT: [SEG]  cat</s>") == "[SEG] cat</s>"


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DetectorError, match=r"tokenizer\.model is missing"):
        LlamaTokenizer(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer.model").write_bytes(b"nonsense")
    with pytest.raises(DetectorError, match="no sentencepiece model"):
        LlamaTokenizer(tmp_path / "tokenizer.model")


def test_only_the_first_question_shows_the_image() -> None:
    text = prompts.prompt([("one", "two"), ("three", "")])
    assert text.count("<image>") == 1
    assert text.endswith("\none ASSISTANT: two</s>USER: three ASSISTANT:")


def test_the_published_wording_has_five_spaces() -> None:
    assert "interleaved     segmentation" in prompts.DESCRIBE_AS_PUBLISHED
    assert prompts.DESCRIBE_AS_PUBLISHED.replace("     ", " ") == prompts.DESCRIBE


def test_phrases_are_asked_for_in_lower_case_with_one_article() -> None:
    assert prompts.segment_question(" The red  Car") == "Can you segment the red car in this image?"


@pytest.mark.parametrize(
    ("text", "message"), [("  ", "is empty"), ("a [SEG] b", "mark of the model's own"), ("<image>", "<image>")]
)
def test_words_that_the_model_cannot_read_are_refused(text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        prompts.clean(text)


def test_spans_point_at_their_words_in_the_caption() -> None:
    answer = parse("<p> A man </p> [SEG] holds <p> a  red umbrella </p> [SEG] .</s>")
    assert answer.caption == "A man holds a red umbrella ."
    assert [(answer.caption[p.start : p.end], p.masks) for p in answer.phrases] == [
        ("A man", (0,)),
        ("a red umbrella", (1,)),
    ]


def test_a_phrase_without_a_mask_does_not_shift_the_others() -> None:
    text = "<p> a </p> <p> b </p> [SEG] <p> c </p> [SEG] [SEG]"
    assert [p.masks for p in parse(text).phrases] == [(), (0,), (1, 2)]
    assert [p.masks for p in parse(text, by_order=True).phrases] == [(0,), (1,), (2,)]


def test_a_mask_before_every_phrase_belongs_to_none() -> None:
    answer = parse("Sure, it is [SEG] . <p> cat </p>")
    assert (answer.num_masks, [p.masks for p in answer.phrases]) == (1, [()])
