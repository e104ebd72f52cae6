"""GLaMM segmenter: pictures and words in, masks and words out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detectors.detector import DetectorError, GroundedSpan, GroundedText, PromptError, detections
from detectors.device import choose_device
from detectors.glamm import prompts, weights
from detectors.glamm.config import IMAGE_PLACEHOLDER
from detectors.glamm.model import ChatTurn, GlammModel, KeysValues, ModelAnswer
from detectors.glamm.parsing import parse
from detectors.glamm.processor import clip_pixels, inner_size, sam_pixels
from detectors.glamm.sam import resize_masks
from detectors.glamm.tokenizer import IMAGE_MARK, LlamaTokenizer
from detectors.overlap import mask_boxes

if TYPE_CHECKING:
    import supervision as sv

Pixels = npt.NDArray[np.uint8]
Masks = npt.NDArray[np.bool_]

MAX_NEW_TOKENS = 512
_LEAST_ANSWER = 32
"""Tokens that a conversation must leave free, or an answer would break off at once."""
_SAM_BATCH = 4
_MASK_BATCH = 16


class ImageError(DetectorError, ValueError):
    """The picture, or the box in it, cannot be used."""


class EncodedImage:
    """One encoded picture, shared by several questions about it.

    Parts that only some questions need, SAM's embedding and the region pyramid, are computed on first use.
    """

    def __init__(self, rgb: Pixels, patches: Tensor, levels: list[Tensor], memory: KeysValues) -> None:
        self.rgb = rgb
        self.patches = patches
        self.memory = memory
        self.levels = levels
        self.pyramid: list[Tensor] | None = None
        self.embedding: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.rgb.shape[0], self.rgb.shape[1]


Image = Pixels | EncodedImage


class Glamm:
    """The `Segmenter` of the GLaMM checkpoints. Images are BGR, (height, width, 3), uint8, or an `EncodedImage`."""

    def __init__(self, model: GlammModel, tokenizer: LlamaTokenizer, name: str = "glamm", batch_size: int = 8) -> None:
        """`batch_size` bounds how many questions share a pass of the language model."""
        if model.config.tokens.seg != tokenizer.tokens.seg:
            raise weights.WeightsError(
                f"the tokenizer has {tokenizer.tokens.im_start} pieces, the model {model.config.tokens.im_start}: "
                "they belong to different checkpoints"
            )
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        opening = tokenizer.encode_prompt(prompts.prompt([("", "")]))
        self._opening = torch.tensor(opening[: opening.index(IMAGE_PLACEHOLDER) + 1])

    @classmethod
    def load(
        cls,
        model: str = "glamm-fullscope",
        *,
        clip: Path | None = None,
        device: str | None = None,
        dtype: str | None = None,
        bits: int | None = None,
        report: Callable[[str], None] | None = None,
    ) -> Glamm:
        """A released checkpoint by name, or one in a folder.

        `clip` is CLIP's folder, for a folder as the hub has it. `dtype` is "bfloat16" or "float32", by default the
        first on a GPU and the second elsewhere. `bits` 8 or 4 packs the language model. `report` gets how much memory
        that takes before it is taken. Raises `WeightsError` when the weights are missing, wrong or too large.
        """
        place = choose_device(device)
        torch_dtype = _choose_dtype(dtype, place)
        if bits not in (None, 8, 4):
            raise PromptError(f"the language model can be stored in 8 or 4 bits, not {bits}")
        folder = weights.find(model, clip)
        needed = weights.memory(folder.config, torch_dtype, bits)
        weights.require_memory(needed, place)
        if report is not None:
            free = weights.free_memory(place) / 1e9
            report(f"{model} takes {needed} of the {free:.1f} GB that are free on {place}")
        tokenizer = LlamaTokenizer(folder.tokenizer)
        return cls(weights.load(folder, place, torch_dtype, bits), tokenizer, name=Path(model).name)

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image]) -> list[EncodedImage]:
        """Encode several pictures together; encoded ones are passed on."""
        looks = {place: image for place, image in enumerate(images) if isinstance(image, EncodedImage)}
        new = [(place, _to_rgb(image)) for place, image in enumerate(images) if not isinstance(image, EncodedImage)]
        for start in range(0, len(new), self.batch_size):
            batch = new[start : start + self.batch_size]
            seen = self._encode_new([rgb for _, rgb in batch])
            looks |= {place: look for (place, _), look in zip(batch, seen, strict=True)}
        return [looks[place] for place in range(len(images))]

    def segment(self, image: Image, phrases: Sequence[str], *, generate: bool = False) -> sv.Detections:
        """A mask for each phrase, by its referring question; see `segment_all`."""
        return self.segment_all([(image, phrases)], generate=generate)[0]

    @torch.inference_mode()
    def segment_all(
        self, requests: Sequence[tuple[Image, Sequence[str]]], *, generate: bool = False
    ) -> list[sv.Detections]:
        """One `sv.Detections` with masks for each (image, phrases); `class_id` is an index into the phrases.

        The answer to a referring question is known up to its mask, so it is given to the model and all
        questions are read in one pass; the mask is then the model's own for exactly that answer.
        `data["as_generated"]` says whether greedy generation would have said the same. `generate` lets the model
        answer itself: many times slower, and some phrases may get several masks or none.
        `confidence` is SAM's own estimate of each mask's IoU; phrases whose mask is empty have no row.
        `metadata["answers"]` holds what the model said to each phrase.
        """
        questions = [[prompts.segment_question(phrase) for phrase in phrases] for _, phrases in requests]
        if not all(questions):
            raise PromptError("no phrase given: name at least one object to segment, such as 'the red car'")
        looks = self.encode_images([image for image, _ in requests])
        asked = [(look, question) for look, own in zip(looks, questions, strict=True) for question in own]
        answers = iter(self._generate_answers(asked) if generate else self._force_answers(asked))
        self._embed_images(looks)
        return [
            self._make_detections(look, phrases, [next(answers) for _ in phrases])
            for look, (_, phrases) in zip(looks, requests, strict=True)
        ]

    def describe(self, image: Image, question: str = prompts.DESCRIBE) -> GroundedText:
        """A text about the whole picture, its phrases tied to masks."""
        return self.describe_all([image], question)[0]

    @torch.inference_mode()
    def describe_all(self, images: Sequence[Image], question: str = prompts.DESCRIBE) -> list[GroundedText]:
        looks = self.encode_images(images)
        answers = self._answer_turns([(look, [(question, "")], None) for look in looks])
        self._embed_images(look for look, answer in zip(looks, answers, strict=True) if len(self._mask_states(answer)))
        return [self._make_grounded(look, answer) for look, answer in zip(looks, answers, strict=True)]

    @torch.inference_mode()
    def caption(self, image: Image) -> str:
        """A text about the whole picture, without masks."""
        (look,) = self.encode_images([image])
        return parse(self._answer_text(self._answer_turns([(look, [(prompts.CAPTION, "")], None)])[0])).caption

    def caption_region(self, image: Image, xyxy: Sequence[float]) -> str:
        """Caption of the box (x1, y1, x2, y2), in pixels. Raises `ImageError` when it is not in the picture."""
        return self.caption_regions(image, [xyxy])[0]

    @torch.inference_mode()
    def caption_regions(self, image: Image, boxes: Sequence[Sequence[float]]) -> list[str]:
        """A caption for each box, asked separately, answered in one batch."""
        (look,) = self.encode_images([image])
        fractions = torch.tensor([box_fractions(box, look.size) for box in boxes]).reshape(-1, 4)
        regions = self._region_vectors(look, fractions)
        answers = self._answer_turns([(look, [(prompts.REGION, "")], region[None]) for region in regions])
        return [parse(self._answer_text(answer)).caption for answer in answers]

    @torch.inference_mode()
    def chat(
        self,
        image: Image,
        history: Sequence[tuple[str, GroundedText]],
        message: str,
        boxes: Sequence[Sequence[float]] = (),
    ) -> GroundedText:
        """The answer to `message` after earlier (message, answer) pairs.

        The k-th `<bbox>` of the conversation stands for `boxes[k]`, (x1, y1, x2, y2) in pixels. Earlier answers
        enter the conversation closed by one `</s>`, as in training; the released demo writes two.
        """
        (look,) = self.encode_images([image])
        texts = [text for text, _ in history] + [prompts.clean(message, allowed=("<bbox>",))]
        marks = sum(text.count("<bbox>") for text in texts)
        if marks != len(boxes):
            raise PromptError(f"the conversation has {marks} <bbox> and {len(boxes)} boxes: give one box for each mark")
        turns = [(text, answer.answer) for text, answer in history]
        regions = (
            self._region_vectors(look, torch.tensor([box_fractions(b, look.size) for b in boxes])) if boxes else None
        )
        (answer,) = self._answer_turns([(look, [*turns, (texts[-1], "")], regions)])
        return self._make_grounded(look, answer)

    # seeing

    def _encode_new(self, pictures: Sequence[Pixels]) -> list[EncodedImage]:
        model = self.model
        side = model.config.clip_vision.image_size
        pixels = torch.stack([clip_pixels(rgb, side) for rgb in pictures]).to(model.device)
        features = model.encode_images(pixels)
        opening = self._opening.to(model.device)
        memories = model.read_opening(torch.stack([model.embed(opening, patches) for patches in features.patches]))
        return [
            EncodedImage(rgb, features.patches[i], [level[i : i + 1] for level in features.levels], memories[i])
            for i, rgb in enumerate(pictures)
        ]

    def _embed_images(self, looks: Iterable[EncodedImage]) -> None:
        """Compute SAM's embedding of the pictures that lack it."""
        new = list({id(look): look for look in looks if look.embedding is None}.values())
        side = self.model.config.sam.image_size
        for start in range(0, len(new), _SAM_BATCH):
            batch = new[start : start + _SAM_BATCH]
            pixels = torch.stack([sam_pixels(look.rgb, side) for look in batch])
            embeddings = self.model.sam.get_image_embeddings(pixels.to(self.model.device, self.model.dtype))
            for place, look in enumerate(batch):
                look.embedding = embeddings[place : place + 1]

    def _region_vectors(self, look: EncodedImage, boxes: Tensor) -> Tensor:
        if look.pyramid is None:
            look.pyramid = self.model.region_encoder.pyramid(look.levels)
        return self.model.regions(look.pyramid, [boxes])[0]

    # asking

    def _conversation_ids(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of a conversation behind the image."""
        return self.tokenizer.encode(prompts.prompt(turns).split(IMAGE_MARK)[1])

    def _make_turn(self, look: EncodedImage, ids: Sequence[int], regions: Tensor | None = None) -> ChatTurn:
        return ChatTurn(look.memory, self.model.embed_words(torch.tensor(ids), regions))

    def _answer_turns(
        self, rows: Sequence[tuple[EncodedImage, Sequence[tuple[str, str]], Tensor | None]]
    ) -> list[ModelAnswer]:
        """Greedy answers to (look, conversation, regions), `batch_size` at a time."""
        turns = [
            self._make_turn(look, self._conversation_ids(conversation), regions) for look, conversation, regions in rows
        ]
        limit = self.model.config.llm.max_position_embeddings
        longest = max((turn.length for turn in turns), default=0)
        if longest + _LEAST_ANSWER > limit:
            raise PromptError(
                f"the conversation has {longest} tokens, GLaMM reads at most {limit} and needs {_LEAST_ANSWER} "
                "to answer: begin a new one, or ask something shorter"
            )
        answers: list[ModelAnswer] = []
        for start in range(0, len(turns), self.batch_size):
            batch = turns[start : start + self.batch_size]
            answers += self.model.generate(batch, min(MAX_NEW_TOKENS, limit - longest))
        return answers

    def _answer_text(self, answer: ModelAnswer) -> str:
        """The answer's text without its end mark and the doubled spaces of decoding."""
        return self.tokenizer.decode(answer.ids.tolist()).removesuffix("</s>").replace("  ", " ").strip()

    def _force_answers(self, asked: Sequence[tuple[EncodedImage, str]]) -> list[_Segment]:
        """The states that choose `[SEG]` in the one fixed answer, and whether each word was the model's own choice."""
        turns, lengths = [], []
        for look, question in asked:
            before = len(self._conversation_ids([(question, "")]))
            ids = self._conversation_ids([(question, prompts.SEGMENT_ANSWER)])
            ids = ids[: ids.index(self.model.config.tokens.seg)]
            turns.append((look, ids))
            lengths.append(before)
        answers: list[_Segment] = []
        for start in range(0, len(turns), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            states = self.model.read([self._make_turn(*turn) for turn in turns[chunk]])
            for (_, ids), before, row in zip(turns[chunk], lengths[chunk], states, strict=True):
                chosen = self.model.llm.lm_head(row[before - 1 :]).argmax(-1).tolist()
                own = chosen == [*ids[before:], self.model.config.tokens.seg]
                answers.append(_Segment(row[-1:], prompts.SEGMENT_ANSWER, own))
        return answers

    def _generate_answers(self, asked: Sequence[tuple[EncodedImage, str]]) -> list[_Segment]:
        answers = self._answer_turns([(look, [(question, "")], None) for look, question in asked])
        return [_Segment(self._mask_states(answer), self._answer_text(answer), True) for answer in answers]

    def _mask_states(self, answer: ModelAnswer) -> Tensor:
        return answer.states[answer.ids == self.model.config.tokens.seg]

    # masks

    def _resize_masks(self, look: EncodedImage, logits: Tensor, iou: Tensor) -> tuple[Masks, npt.NDArray[np.float32]]:
        """Masks at the picture's own size, a few at a time: logits of a large picture are large."""
        side = self.model.config.sam.image_size
        inner = inner_size(*look.size, side)
        masks = [
            (resize_masks(logits[start : start + _MASK_BATCH], side, inner, look.size) > 0).cpu().numpy()
            for start in range(0, len(logits), _MASK_BATCH)
        ]
        return np.concatenate(masks or [np.zeros((0, *look.size), dtype=bool)]), iou.clamp(0, 1).cpu().numpy()

    def _decode_masks(self, look: EncodedImage, states: Tensor) -> tuple[Masks, npt.NDArray[np.float32]]:
        if not len(states):
            return np.zeros((0, *look.size), dtype=bool), np.zeros(0, dtype=np.float32)
        self._embed_images([look])
        assert look.embedding is not None
        return self._resize_masks(look, *self.model.mask_logits(look.embedding, states))

    def _make_detections(
        self, look: EncodedImage, phrases: Sequence[str], answers: Sequence[_Segment]
    ) -> sv.Detections:
        ids = np.repeat(np.arange(len(answers)), [len(answer.states) for answer in answers])
        masks, iou = self._decode_masks(look, torch.cat([answer.states for answer in answers]))
        kept = masks.any(axis=(1, 2))
        masks, iou, ids = masks[kept], iou[kept], ids[kept]
        found = detections(mask_boxes(masks), iou, ids, phrases, masks)
        found.data["as_generated"] = np.array([answers[int(i)].as_generated for i in ids], dtype=np.bool_)
        found.metadata["answers"] = [answer.text for answer in answers]
        return found

    def _make_grounded(self, look: EncodedImage, answer: ModelAnswer) -> GroundedText:
        text = self._answer_text(answer).replace("\n", " ")
        parsed = parse(text)
        masks, _ = self._decode_masks(look, self._mask_states(answer))
        spans = tuple(
            GroundedSpan(phrase.start, phrase.end, phrase.text, tuple(m for m in phrase.masks if m < len(masks)))
            for phrase in parsed.phrases
        )
        complete = int(answer.ids[-1]) == self.model.config.tokens.eos
        return GroundedText(parsed.caption, spans, masks, text, complete)


@dataclass(frozen=True, eq=False)
class _Segment:
    """The states of one phrase's masks (K, D), what was said, and whether the model said it by itself."""

    states: Tensor
    text: str
    as_generated: bool


def _choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    if name is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    known = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    if name not in known:
        raise PromptError(f"GLaMM computes in bfloat16 or float32, not {name!r}")
    return known[name]


def _to_rgb(image: Any) -> Pixels:
    """RGB from BGR. Raises `ImageError` for anything but a picture."""
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        what = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ImageError(f"a picture is a uint8 array of shape (height, width, 3), this is {what}")
    if not image.size or max(image.shape) > 100 * min(image.shape[:2]):
        raise ImageError(f"a picture of {image.shape[1]}x{image.shape[0]} pixels is too narrow to be read")
    return np.ascontiguousarray(image[..., ::-1])


def box_fractions(box: Sequence[float], size: tuple[int, int]) -> list[float]:
    """xyxy pixels as fractions of the picture. Raises `ImageError` when the box is not inside it."""
    height, width = size
    x1, y1, x2, y2 = (float(value) for value in box)
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise ImageError(
            f"the box {x1:g},{y1:g},{x2:g},{y2:g} is not in the picture: give x1,y1,x2,y2 in pixels "
            f"with x1 < x2 <= {width} and y1 < y2 <= {height}"
        )
    return [x1 / width, y1 / height, x2 / width, y2 / height]
