"""Prompts of GLaMM: its questions in the wording that it was trained with."""

from __future__ import annotations

from collections.abc import Sequence

from detectors.detector import PromptError
from detectors.glamm.config import ADDED_TOKENS
from detectors.glamm.tokenizer import IMAGE_MARK

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
OPENING = f"The <im_start>{IMAGE_MARK}<im_end> provides an overview of the picture.\n"

DESCRIBE = (
    "Could you please give me a detailed description of the image? "
    "Please respond with interleaved segmentation masks for the corresponding parts of the answer."
)
# five spaces: the released evaluation breaks its string there, and its figures were measured with them
DESCRIBE_AS_PUBLISHED = DESCRIBE.replace("interleaved segmentation", "interleaved     segmentation")
CAPTION = "Could you please give me a detailed description of the image?"
REGION = "Can you provide me with a detailed description of the region in the picture marked by <bbox>?"
REGIONS = "Can you provide me with a detailed description of the regions in the picture marked by {regions}?"
SEGMENT = "Can you segment the {phrase} in this image?"
SEGMENT_ANSWER = "Sure, it is [SEG]."

_MARKS = (*ADDED_TOKENS, IMAGE_MARK, "<s>", "</s>", "<unk>")


def prompt(turns: Sequence[tuple[str, str]]) -> str:
    """The whole conversation for the model: (question, answer) pairs, the last answer empty to be given.

    Each answer is closed by `</s>`; the first question is put after the sentence that holds the image.
    """
    text = SYSTEM + " "
    for place, (question, answer) in enumerate(turns):
        text += f"USER: {OPENING if place == 0 else ''}{question} ASSISTANT:"
        if answer:
            text += f" {answer}</s>"
    return text


def segment_question(phrase: str) -> str:
    """The referring question; the model was trained with phrases in lower case."""
    return SEGMENT.format(phrase=clean(phrase).lower().removeprefix("the "))


def region_question(count: int) -> str:
    """The question for `count` boxes; several are numbered as in training."""
    if count == 1:
        return REGION
    return REGIONS.format(regions=", ".join(f"region{place} <bbox>" for place in range(1, count + 1)))


def clean(text: str, allowed: Sequence[str] = ()) -> str:
    """The user's words with white space folded. Raises `PromptError` when they are empty or hold the model's marks.

    Marks are found in capitals too: questions are lower-cased on their way to the model.
    """
    text = " ".join(text.split())
    if not text:
        raise PromptError("the question is empty: write what to find, such as 'the man in red'")
    rest = text
    for mark in allowed:
        rest = rest.replace(mark, " ")
    for mark in _MARKS:
        if mark.lower() in rest.lower():
            raise PromptError(f"{text!r} holds {mark!r}, which is a mark of the model's own: leave it out")
    return text
