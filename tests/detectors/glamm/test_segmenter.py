from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from detectors.detector import DetectorError, GroundedText, PromptError
from detectors.glamm import weights
from detectors.glamm.box_masks import BoxMasks
from detectors.glamm.config import CLIP_NAME
from detectors.glamm.segmenter import Glamm, ImageError


def picture(seed: int = 0, height: int = 60, width: int = 90) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def glamm(hub: Path) -> Glamm:
    return Glamm.load(str(hub / "glamm"), clip=hub / "clip")


@pytest.fixture(scope="module")
def obedient(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Glamm:
    """A GLaMM that answers every question as a referring one."""
    hub = tiny.save_hub(tiny.random_glamm(), tmp_path_factory.mktemp("obedient"), answer="Sure, it is [SEG].")
    return Glamm.load(str(hub / "glamm"), clip=hub / "clip")


def test_a_description_ties_its_phrase_to_a_mask(glamm: Glamm) -> None:
    found = glamm.describe(picture())
    assert found.text == "cat"
    assert [(span.phrase, span.start, span.end, span.masks) for span in found.spans] == [("cat", 0, 3, (0,))]
    assert found.masks.shape == (1, 60, 90)
    assert found.answer == "<p> cat </p> [SEG]"


def test_each_phrase_gets_a_mask_of_its_own(glamm: Glamm) -> None:
    found = glamm.segment(picture(), ["the red car", "a man"])
    assert found.mask is not None
    assert found.mask.shape[1:] == (60, 90)
    assert set(found.class_id.tolist()) <= {0, 1}
    for box, mask in zip(found.xyxy, found.mask, strict=True):
        rows, columns = mask.nonzero()
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert found.data["class_name"].tolist() == [["the red car", "a man"][i] for i in found.class_id]


def test_the_forced_answer_equals_the_generated_one_when_the_model_says_it(obedient: Glamm) -> None:
    forced = obedient.segment(picture(), ["red car"])
    generated = obedient.segment(picture(), ["red car"], generate=True)
    assert forced.data["as_generated"].all()
    assert np.array_equal(forced.mask, generated.mask)
    assert generated.metadata["answers"] == ["Sure, it is [SEG] ."]


def test_a_forced_answer_that_the_model_would_not_give_is_reported(glamm: Glamm) -> None:
    assert not glamm.segment(picture(), ["red car"]).data["as_generated"].any()


def test_several_pictures_share_a_batch(glamm: Glamm) -> None:
    pictures = [picture(1), picture(2, 40, 80), picture(3)]
    phrases = [["cat"], ["man", "red umbrella"], ["street"]]
    together = glamm.segment_all(list(zip(pictures, phrases, strict=True)))
    for image, wanted, found in zip(pictures, phrases, together, strict=True):
        alone = glamm.segment(image, wanted)
        assert found.class_id.tolist() == alone.class_id.tolist()
        assert np.array_equal(found.mask, alone.mask)
    assert [g.text for g in glamm.describe_all(pictures)] == ["cat"] * 3


def test_a_picture_is_seen_once_for_several_questions(glamm: Glamm, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    see = glamm.model.encode_images
    monkeypatch.setattr(glamm.model, "encode_images", lambda pixels: (seen.append(len(pixels)), see(pixels))[1])
    (look,) = glamm.encode_images([picture()])
    answers = [glamm.describe(look).text, glamm.caption(look), glamm.caption_region(look, (1, 2, 30, 40))]
    glamm.segment(look, ["cat"])
    assert seen == [1]
    assert answers[0] == glamm.describe(picture()).text


def test_regions_are_read_from_their_place(hub: Path, tiny: ModuleType) -> None:
    """The random model's words differ between boxes, so the box must have reached them."""
    model = tiny.random_glamm(seed=4)
    glamm = Glamm(model.requires_grad_(False), Glamm.load(str(hub / "glamm"), clip=hub / "clip").tokenizer)
    boxes = [(0, 0, 20, 20), (30, 10, 60, 50), (5, 5, 85, 55)]
    (look,) = glamm.encode_images([picture()])
    together = glamm.caption_regions(look, boxes)
    assert together == [glamm.caption_region(look, box) for box in boxes]
    assert len(set(together)) > 1


def test_a_conversation_goes_on(glamm: Glamm) -> None:
    first = glamm.chat(picture(), [], "What is in this image?")
    second = glamm.chat(picture(), [("What is in this image?", first)], "Where is it?")
    assert second.text == "cat"
    assert len(second.masks) == 1  # of this answer, not of the earlier ones


def test_an_answer_without_masks_is_plain_text(tiny: ModuleType, tmp_path: Path) -> None:
    hub = tiny.save_hub(tiny.random_glamm(), tmp_path / "hub", answer="A man")
    glamm = Glamm.load(str(hub / "glamm"), clip=hub / "clip")
    found = glamm.describe(picture())
    assert (found.text, found.spans, found.masks.shape) == ("A man", (), (0, 60, 90))
    segments = glamm.segment(picture(), ["dog"], generate=True)
    assert (len(segments), segments.metadata["answers"]) == (0, ["A man"])


@pytest.mark.parametrize("box", [(10, 10, 5, 20), (-1, 0, 5, 5), (0, 0, 91, 20), (0, 0, float("nan"), 20)])
def test_a_box_outside_the_picture_is_refused(glamm: Glamm, box: tuple[float, ...]) -> None:
    with pytest.raises(ImageError, match="is not in the picture: give x1,y1,x2,y2"):
        glamm.caption_region(picture(), box)


def test_what_is_no_picture_is_refused(glamm: Glamm) -> None:
    with pytest.raises(ImageError, match=r"float64 of shape \(4, 4\)"):
        glamm.describe(np.zeros((4, 4)))
    with pytest.raises(ImageError, match="too narrow"):
        glamm.describe(np.zeros((1, 2000, 3), np.uint8))


def test_words_that_cannot_be_asked_are_refused(glamm: Glamm) -> None:
    with pytest.raises(PromptError, match="no phrase given"):
        glamm.segment(picture(), [])
    with pytest.raises(PromptError, match="is empty"):
        glamm.segment(picture(), ["  "])
    with pytest.raises(PromptError, match="1 <bbox> and 0 boxes"):
        glamm.chat(picture(), [], "What is <bbox>?")


def test_a_conversation_that_is_too_long_is_refused(glamm: Glamm) -> None:
    answer = GroundedText("", (), np.zeros((0, 60, 90), bool), "a long answer " * 40)
    history = [("again?", answer)] * 6
    with pytest.raises(PromptError, match=r"has \d+ tokens, GLaMM reads at most 1024.*begin a new one"):
        glamm.chat(picture(), history, "and now?")


def test_a_model_says_what_it_takes_before_it_is_loaded(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[str] = []
    Glamm.load(str(hub / "glamm"), clip=hub / "clip", report=reported.append)
    assert "GB that are free on cpu" in reported[0]
    monkeypatch.setattr(weights, "free_memory", lambda device: 1000)
    with pytest.raises(DetectorError, match="--bits 8 or 4"):
        Glamm.load(str(hub / "glamm"), clip=hub / "clip")


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'glamm-huge' is neither a folder nor one of glamm-fullscope"):
        Glamm.load("glamm-huge")


def test_a_released_model_is_fetched_and_converted_once(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []

    def download(repository: str, model: str) -> Path:
        fetched.append(repository)
        return hub / ("clip" if repository == CLIP_NAME else "glamm")

    monkeypatch.setenv("GROUNDSTREAM_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "_download_folder", download)
    for _ in range(2):
        assert Glamm.load("glamm-gcg").describe(picture()).text == "cat"
    assert fetched == ["MBZUAI/GLaMM-GCG", CLIP_NAME]


def test_a_box_becomes_a_mask_with_the_same_identity(glamm: Glamm) -> None:
    import supervision as sv

    tracked = sv.Detections(xyxy=np.array([[5.0, 5, 40, 50], [30, 10, 80, 55]]), tracker_id=np.array([3, 8]))
    boxes = BoxMasks(glamm.model.sam)
    found = boxes.add_masks(picture(), tracked)
    assert found.tracker_id.tolist() == [3, 8]
    assert found.mask.shape == (2, 60, 90)
    assert not np.array_equal(found.mask[0], found.mask[1])
    assert boxes.masks(picture(), np.zeros((0, 4)))[0].shape == (0, 60, 90)


def test_a_boxs_mask_equals_that_of_transformers_own_path(glamm: Glamm) -> None:
    from detectors.glamm.processor import inner_size, sam_pixels
    from detectors.glamm.sam import resize_masks

    image, box = picture(height=100, width=90), np.array([[10.0, 20, 70, 80]])
    side = glamm.model.config.sam.image_size
    inner = inner_size(100, 90, side)
    scaled = torch.tensor([[10 * inner[1] / 90, 20 * inner[0] / 100, 70 * inner[1] / 90, 80 * inner[0] / 100]])
    with torch.inference_mode():
        theirs = glamm.model.sam(
            pixel_values=sam_pixels(np.ascontiguousarray(image[..., ::-1]), side)[None],
            input_boxes=scaled[None],
            multimask_output=False,
        )
    masks, iou = BoxMasks(glamm.model.sam).masks(image, box)
    logits = resize_masks(theirs.pred_masks[0, :, 0], side, inner, (100, 90))
    assert np.array_equal(masks, (logits > 0).numpy())
    assert float(theirs.iou_scores.clamp(0, 1)[0, 0, 0]) == pytest.approx(float(iou[0]), abs=1e-5)


def test_a_detectors_boxes_get_masks_for_the_queries_named(glamm: Glamm) -> None:
    import supervision as sv

    from detectors.detector import Prompt, Request, detections
    from detectors.glamm.box_masks import WithMasks

    class Two:
        def prepare(self, queries: object) -> Prompt:
            return Prompt(("man", "car"))

        def detect(self, requests: list[Request]) -> list[sv.Detections]:
            return [
                detections([[5, 5, 40, 50], [30, 10, 80, 55]], [0.9, 0.8], [0, 1], r.prompt.queries) for r in requests
            ]

    detector = WithMasks(Two(), BoxMasks(glamm.model.sam), only=["car"])
    (found,) = detector.detect([Request(picture(), detector.prepare(["man", "car"]))])
    assert found.mask.any(axis=(1, 2)).tolist() == [False, True]
    assert np.array_equal(found.mask[1], BoxMasks(glamm.model.sam).masks(picture(), found.xyxy[1:])[0][0])


def test_enrichment_reports_of_a_thing_and_of_a_scene(glamm: Glamm) -> None:
    from streamer.enrichment.describers import GlammDescriber, MaskDescriber

    describer = GlammDescriber(glamm)
    thing = describer(picture(), (0.1, 0.1, 0.5, 0.6), "person")
    assert (thing.text, thing.model, thing.spans[0].phrase, thing.spans[0].end) == ("cat", "glamm", "person", 3)
    assert thing.spans[0].mask.size == (60, 90)
    assert [span.phrase for span in describer(picture(), None, "").spans] == ["cat"]
    masks_only = MaskDescriber(BoxMasks(glamm.model.sam))
    alone = masks_only(picture(), (0.999, 0.1, 1.0, 0.6), "person")
    assert masks_only(picture(), None, "") is None
    assert alone is not None
    assert (alone.text, alone.model) == ("person", "sam")
