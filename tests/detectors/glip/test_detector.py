"""GLIP behind the contract, with a tiny random network in a model folder."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import supervision as sv
import torch

from detectors import create_detector
from detectors.detector import DetectorError, PromptError, Request
from detectors.glip import model_files as source
from detectors.glip.detector import Glip, create
from detectors.glip.embedding import embed_boxes
from detectors.glip.training.tuned_prompt import TunedPrompt, add_offsets
from tests.detectors.glip.conftest import CONFIG, PIECES

Image = npt.NDArray[np.uint8]


def picture(height: int, width: int, seed: int = 0) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def glip(folder: Path) -> Glip:
    return create("glip-mini", weights=folder, dtype="float32")


def run(glip: Glip, *asked: tuple[Image, list[str]]) -> list[sv.Detections]:
    return glip.detect([Request(image, glip.prepare(queries)) for image, queries in asked])


def same(a: sv.Detections, b: sv.Detections) -> bool:
    """Equal but for float rounding, whatever the order of near-equal scores."""
    if len(a) != len(b):
        return False
    assert a.confidence is not None
    assert b.confidence is not None
    assert a.class_id is not None
    assert b.class_id is not None
    order_a = np.lexsort((a.xyxy[:, 0].round(1), a.xyxy[:, 1].round(1), a.class_id))
    order_b = np.lexsort((b.xyxy[:, 0].round(1), b.xyxy[:, 1].round(1), b.class_id))
    return bool(
        np.array_equal(a.class_id[order_a], b.class_id[order_b])
        and np.allclose(a.xyxy[order_a], b.xyxy[order_b], atol=0.02)
        and np.allclose(a.confidence[order_a], b.confidence[order_b], atol=1e-4)
    )


def test_it_is_created_by_name_with_weights_from_a_folder(folder: Path) -> None:
    detector = create_detector("glip-mini", weights=folder, threshold=0.3)
    assert detector.threshold == 0.3
    assert create_detector("glip-mini", weights=folder).threshold == CONFIG.postprocess.threshold
    assert detector.prepare(["person"]).queries == ("person",)


def test_boxes_lie_in_the_picture_and_the_best_comes_first(glip: Glip) -> None:
    (found,) = run(glip, (picture(90, 130), ["person", "red car"]))
    assert len(found) > 0
    assert found.xyxy.dtype == np.float32
    assert (found.xyxy >= 0).all()
    assert (found.xyxy[:, [0, 2]] <= 130).all()
    assert (found.xyxy[:, [1, 3]] <= 90).all()
    assert found.confidence is not None
    assert (np.diff(found.confidence) <= 0).all()
    assert found.class_id is not None
    assert [("person", "red car")[i] for i in found.class_id] == list(found.data["class_name"])


def test_a_result_does_not_depend_on_what_else_is_in_the_batch(glip: Glip) -> None:
    asked = [
        (picture(64, 96, 1), ["person"]),
        (picture(200, 120, 2), ["dog", "bus", "traffic light", "tree"]),
        (picture(64, 96, 3), ["red car", "a dog"]),
        (picture(64, 64, 4), ["person"]),
        (picture(31, 47, 5), ["the bus"]),
    ]
    together = run(glip, *asked)
    assert sum(map(len, together)) > 20
    for alone, found in zip((run(glip, one)[0] for one in asked), together, strict=True):
        assert same(alone, found)


def test_batches_larger_than_the_device_takes_are_split(glip: Glip, folder: Path) -> None:
    small = Glip(*source.find_files("glip-mini", folder).load(), largest_batch=2)
    asked = [(picture(64, 96, seed), ["person", "dog"]) for seed in range(5)]
    for one, other in zip(run(glip, *asked), run(small, *asked), strict=True):
        assert same(one, other)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (2000, 2), (4320, 7680)])
def test_pictures_of_any_size_are_taken(glip: Glip, shape: tuple[int, int]) -> None:
    (found,) = run(glip, (np.full((*shape, 3), 128, np.uint8), ["person"]))
    assert (found.xyxy[:, 2:] <= (shape[1], shape[0])).all()


def test_a_grey_picture_is_one_with_three_equal_channels(glip: Glip) -> None:
    grey = picture(64, 80)[:, :, 0]
    prompt = glip.prepare(["person"])
    flat, one, three = glip.detect(
        [Request(grey, prompt), Request(grey[..., None], prompt), Request(np.repeat(grey[..., None], 3, 2), prompt)]
    )
    assert same(flat, three)
    assert same(one, three)


def test_a_picture_of_another_kind_is_refused_with_what_was_found(glip: Glip) -> None:
    with pytest.raises(ValueError, match=r"request 0: the image is float32 \(4, 4, 3\)"):
        glip.detect([Request(np.zeros((4, 4, 3), np.float32), glip.prepare(["dog"]))])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(4, 4, 4\)"):
        glip.detect([Request(np.zeros((4, 4, 4), np.uint8), glip.prepare(["dog"]))])


def test_pictures_that_may_not_be_written_to_are_read(glip: Glip) -> None:
    image = picture(64, 80)
    want = run(glip, (image.copy(), ["dog"]))[0]
    image.setflags(write=False)
    assert same(run(glip, (image, ["dog"]))[0], want)
    assert same(run(glip, (image[::1, ::1][:, ::-1][:, ::-1], ["dog"]))[0], want)


def test_no_request_gives_no_result(glip: Glip) -> None:
    assert glip.detect([]) == []


def test_nothing_found_is_an_empty_result(folder: Path) -> None:
    strict = create("glip-mini", weights=folder, threshold=1.0)
    strict.model.rpn.head.bias0.fill_(-30)
    (found,) = run(strict, (picture(64, 64), ["person"]))
    assert len(found) == 0
    assert found.xyxy.shape == (0, 4)
    assert found.class_id is not None


def test_the_same_words_are_encoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    glip = create("glip-mini", weights=folder)
    calls = 0
    encode = glip.model.encode_text

    def counted(*inputs: torch.Tensor) -> object:
        nonlocal calls
        calls += 1
        return encode(*inputs)

    monkeypatch.setattr(glip.model, "encode_text", counted)
    for _ in range(3):
        run(glip, (picture(64, 64), ["person", "dog"]))
    assert calls == 1


def test_many_queries_are_spread_over_captions_and_keep_their_numbers(folder: Path) -> None:
    glip = create("glip-mini", weights=folder, dtype="float32")
    queries = ["person", "red car", "dog", "bus", "traffic light", "tree", "a red bus", "the light", "a tree", "a dog"]
    prompt = glip.prepare(queries)
    assert len(prompt.chunks) > 1
    image = picture(64, 96)
    (found,) = glip.detect([Request(image, prompt)])
    pieces = []
    for chunk in prompt.chunks:
        pieces += named(run(glip, (image, [queries[index] for index in chunk.queries]))[0])
    assert sorted(named(found)) == sorted(pieces)
    assert {name for name, *_ in named(found)} > {"person", "a dog"}


def named(found: sv.Detections) -> list[tuple[str, tuple[float, ...], float]]:
    """(name, rounded box, rounded score) of each detection."""
    assert found.confidence is not None
    rows = zip(found.data["class_name"], found.xyxy, found.confidence, strict=True)
    return [(str(name), tuple(box.round(1).tolist()), round(float(score), 3)) for name, box, score in rows]


def test_a_bound_on_the_queries_of_one_caption_is_kept(folder: Path) -> None:
    glip = create("glip-mini", weights=folder, per_caption=2)
    assert [chunk.queries for chunk in glip.prepare(["person", "dog", "bus"]).chunks] == [(0, 1), (2,)]


def test_without_chunking_the_first_query_lost_is_named(folder: Path) -> None:
    glip = create("glip-mini", weights=folder, chunking=False)
    fitting = [f"{a} {b}" for a in ("red", "a") for b in ("dog", "bus", "car")]
    assert len(glip.prepare(fitting).chunks) == 1
    with pytest.raises(PromptError, match=r"have 27 tokens, GLIP reads at most 24.*from 'the bus' on"):
        glip.prepare([*fitting, "tree", "the car", "the bus"])


def test_a_query_that_alone_is_too_long_is_refused(glip: Glip) -> None:
    with pytest.raises(PromptError, match="has 26 tokens, GLIP reads at most 22"):
        glip.prepare(["dog", " ".join(["dog"] * 26)])


def test_a_query_of_which_nothing_can_be_read_is_refused(glip: Glip) -> None:
    with pytest.raises(PromptError, match=r"'\(dog\)'"):
        glip.prepare(["(dog)"])
    with pytest.raises(PromptError, match="query 1 is empty"):
        glip.prepare([" "])


def test_free_text_with_phrases_labels_by_phrase(glip: Glip) -> None:
    prompt = glip.prepare_text("a dog, the red car, a dog", ["red car", "a dog"])
    assert prompt.chunks[0].queries == (0, 1, 1), "each place is a label of its own"
    (found,) = glip.detect([Request(picture(64, 64), prompt)])
    assert set(found.data["class_name"]) <= {"red car", "a dog"}
    with pytest.raises(PromptError, match="'bus' is not in the text"):
        glip.prepare_text("a dog", ["bus"])
    with pytest.raises(PromptError, match="the phrase 'bus'"):
        glip.prepare_text(" ".join(["dog"] * 30) + " bus", ["bus"])


def test_thresholds_by_query_let_doubtful_ones_through_down_to_a_half(folder: Path) -> None:
    def scores(query: str, thresholds: list[float] | None = None, **options: Any) -> npt.NDArray[np.float32]:
        glip = create("glip-mini", weights=folder, **options)
        glip.model.rpn.head.bias0.fill_(-2.8)
        prompt = glip.prepare(["person", "dog"])
        (found,) = glip.detect([Request(picture(64, 96), prompt, thresholds=thresholds)])
        assert found.confidence is not None
        return np.asarray(found.confidence[found.data["class_name"] == query])

    for query in ("person", "dog"):
        assert scores(query, threshold=0.0).min() < 0.2
        assert (scores(query, threshold=1.0) >= 0.5).all()
        assert (scores(query, [1.0, 1.0], threshold=0.0) >= 0.5).all()
    assert (scores("person", [1.0, 0.1], threshold=1.0) >= 0.5).all()
    assert scores("dog", [1.0, 0.1], threshold=1.0).min() < 0.2
    with pytest.raises(PromptError, match="must lie between 0 and 1"):
        create("glip-mini", weights=folder, threshold=2.0)


def test_embeddings_are_those_of_the_boxes_and_do_not_depend_on_company(folder: Path) -> None:
    plain, embedding = create("glip-mini", weights=folder), create("glip-mini", weights=folder, embed=True)
    for glip in (plain, embedding):
        glip.model.rpn.head.bias0.fill_(-2.8)
    images = [picture(64, 96), picture(120, 90), picture(64, 96, seed=1)]
    requests = [(image, ["person", "dog"]) for image in images]
    for without, found, alone in zip(
        run(plain, *requests), run(embedding, *requests), (run(embedding, one)[0] for one in requests), strict=True
    ):
        np.testing.assert_array_equal(without.xyxy, found.xyxy)
        assert "embedding" not in without.data
        vectors = found.data["embedding"]
        assert vectors.dtype == np.float32
        assert vectors.shape == (len(found), 8 * embedding.model.config.head.channels)
        assert np.isfinite(vectors).all()
        np.testing.assert_allclose(vectors, alone.data["embedding"], rtol=1e-3, atol=1e-3)
        assert len(found[:0].data["embedding"]) == 0


def test_an_embedding_reads_the_features_in_its_box() -> None:
    features = torch.zeros(2, 10, 20)
    features[0, :, 10:] = 1.0  # the right half
    features[1, 5:] = 1.0  # the lower half
    boxes = torch.tensor([[0.0, 0, 80, 80], [80, 0, 160, 80], [0, 0, 160, 80], [-20, -20, 900, 900]])
    left, right, whole, beyond = embed_boxes(features, boxes, stride=8).reshape(4, 2, 4, 2)
    assert left[0].max() < 0.3
    assert right[0].min() > 0.7
    assert whole[0, :, 0].max() < 0.3
    assert whole[0, :, 1].min() > 0.7
    assert whole[1, 0].max() < 0.3
    assert whole[1, 3].min() > 0.7
    assert torch.isfinite(beyond).all()


def test_a_prompt_of_another_detector_is_refused(glip: Glip, folder: Path) -> None:
    other = create("glip-mini", weights=folder)
    with pytest.raises(PromptError, match="another detector"):
        glip.detect([Request(picture(64, 64), other.prepare(["dog"]))])


def test_tuned_words_replace_the_text_encoder(folder: Path, tmp_path: Path) -> None:
    glip = create("glip-mini", weights=folder)
    image, queries = picture(64, 96), ["person", "dog"]
    plain = run(glip, (image, queries))[0]
    model, tokenizer = source.find_files("glip-mini", folder).load()
    offsets = add_offsets(model)
    from detectors.glip.caption import category_caption

    tokens = tokenizer(category_caption(queries))
    TunedPrompt.of(model, queries, tokens).save(tmp_path / "zero.safetensors")
    with torch.no_grad():
        offsets.weight.normal_()
    TunedPrompt.of(model, queries, tokens).save(tmp_path / "words.safetensors")

    untouched = create("glip-mini", weights=folder, tuned=tmp_path / "zero.safetensors")
    assert same(run(untouched, (image, queries))[0], plain)
    tuned = create("glip-mini", weights=folder, tuned=tmp_path / "words.safetensors")
    moved = run(tuned, (image, queries))[0]
    assert not same(moved, plain)
    assert set(run(tuned, (image, ["dog"]))[0].data["class_name"]) <= {"dog"}
    with pytest.raises(PromptError, match=r"tuned for person, dog, not for 'bus'"):
        tuned.prepare(["bus"])
    (tmp_path / "text").write_text("words")
    with pytest.raises(DetectorError, match="no file of tuned words"):
        create("glip-mini", weights=folder, tuned=tmp_path / "text")


def test_running_out_of_memory_halves_the_batch_once_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    glip = create("glip-mini", weights=folder)
    look, sizes = glip._encode_images, []

    def cramped(images: torch.Tensor) -> list[torch.Tensor]:
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.cuda.OutOfMemoryError("no room")
        return look(images)

    monkeypatch.setattr(glip, "_encode_images", cramped)
    asked = [(picture(64, 64, seed), ["dog"]) for seed in range(4)]
    with caplog.at_level(logging.WARNING):
        found = run(glip, *asked)
    assert len(found) == 4
    assert sizes == [4, 2, 2]
    assert "ran out of memory with 4 pictures at once: going on with 2" in caplog.text


def test_memory_too_small_even_for_half_a_batch_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    glip = create("glip-mini", weights=folder)

    def full(images: torch.Tensor) -> list[torch.Tensor]:
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setattr(glip, "_encode_images", full)
    with pytest.raises(DetectorError, match="with 2 and with 1 pictures"):
        run(glip, *[(picture(64, 64), ["dog"])] * 2)
    with pytest.raises(DetectorError, match="too little memory for one picture"):
        run(glip, (picture(64, 64), ["dog"]))


def test_missing_weights_name_the_three_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDSTREAM_CACHE", str(tmp_path))
    with pytest.raises(DetectorError) as error:
        create("glip-tiny")
    for way in ("groundstream models pull glip-tiny", "(weights)", "coco-nano", "motion"):
        assert way in str(error.value)


def test_cached_weights_are_found_by_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDSTREAM_CACHE", str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "glip-tiny").symlink_to(folder)
    found = source.find_files("glip-tiny")
    assert found.weights == tmp_path / "models" / "glip-tiny" / "weights.safetensors"


def test_without_its_packaged_weights_glip_mini_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PACKAGED", tmp_path)
    with pytest.raises(DetectorError, match="carries no weights for glip-mini"):
        create("glip-mini")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean glip-tiny"):
        create("glip-tinny")


def test_a_vocabulary_that_is_none_or_too_large_is_refused(folder: Path, tmp_path: Path) -> None:
    words = tmp_path / "vocab.txt"
    words.write_text("dog\ncat\n")
    with pytest.raises(DetectorError, match=r"is not BERT's vocabulary \(\[PAD\] is not in it\)"):
        create("glip-mini", weights=folder, vocabulary=words)
    words.write_text("\n".join([*PIECES, "zebra"]))
    with pytest.raises(DetectorError, match="belongs to the weights"):
        create("glip-mini", weights=folder, vocabulary=words)
    with pytest.raises(DetectorError, match="there is no vocabulary"):
        create("glip-mini", weights=folder, vocabulary=tmp_path / "none.txt")


def test_devices_precisions_and_backends_that_are_not_there_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="unknown device 'tpu9'"):
        create("glip-mini", weights=folder, device="tpu9")
    with pytest.raises(ValueError, match="GPUs here"):
        create("glip-mini", weights=folder, device="cuda:99")
    with pytest.raises(ValueError, match="unknown precision 'int3'"):
        create("glip-mini", weights=folder, dtype="int3")
    with pytest.raises(ValueError, match="unknown backend 'magic'"):
        create("glip-mini", weights=folder, backend="magic")


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own modules
@pytest.mark.skipif(which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.skipif("GROUNDSTREAM_SLOW_TESTS" not in os.environ, reason="a minute; set GROUNDSTREAM_SLOW_TESTS=1")
def test_compiled_it_finds_the_same(glip: Glip, folder: Path) -> None:
    compiled = create("glip-mini", weights=folder, backend="compile")
    asked = (picture(64, 96), ["person", "dog"])
    assert same(run(glip, asked)[0], run(compiled, asked)[0])


def test_half_precision_finds_nearly_the_same(glip: Glip, folder: Path) -> None:
    half = create("glip-mini", weights=folder, dtype="bfloat16")
    asked = (picture(64, 96), ["person", "dog"])
    exact, rough = run(glip, asked)[0], run(half, asked)[0]
    assert exact.confidence is not None
    assert rough.confidence is not None
    assert abs(len(exact) - len(rough)) <= 3
    assert abs(exact.confidence.max() - rough.confidence.max()) < 0.03


@pytest.mark.gpu
def test_on_a_gpu_it_finds_what_it_finds_on_the_cpu(glip: Glip, folder: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    there = create("glip-mini", weights=folder, device="cuda", dtype="float32")
    asked = [(picture(64, 96, seed), ["person", "dog"]) for seed in range(3)]
    for a, b in zip(run(glip, *asked), run(there, *asked), strict=True):
        assert abs(len(a) - len(b)) <= 1


def test_a_model_folder_describes_itself(folder: Path) -> None:
    assert json.loads((folder / "config.json").read_text())["image"]["min_side"] == CONFIG.image.min_side
    with pytest.raises(DetectorError, match="no model folder"):
        create("glip-mini", weights=folder.parent)


def test_marks_around_a_query_do_not_change_what_is_found(glip: Glip) -> None:
    image = picture(90, 130)
    plain, marked = run(glip, (image, ["a dog", "man"]), (image, ['"a dog."', "man!"]))
    assert same(plain, marked)
    assert set(marked.data["class_name"]) <= {'"a dog."', "man!"}


def test_queries_that_only_parentheses_report_apart_are_refused(glip: Glip, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(PromptError, match="read alike for this model, which leaves out parentheses"):
        glip.prepare(["car (parked)", "car (moving)"])
    glip.prepare(["car (parked)"])
    assert "parentheses in the query 'car (parked)' are left out" in caplog.text


def test_words_outside_the_vocabulary_are_reported(glip: Glip, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(PromptError, match="nothing of the query '😀' is in the model's vocabulary"):
        glip.prepare(["😀"])
    glip.prepare(["dog 😀"])
    assert "'😀' is not in the model's vocabulary: it is left out" in caplog.text


def test_predictions_that_are_not_numbers_are_an_error(folder: Path) -> None:
    glip = create("glip-mini", weights=folder, dtype="float32")
    with torch.no_grad():
        glip.model.rpn.head.bias0.fill_(float("nan"))
    with pytest.raises(DetectorError, match="predictions are not numbers"):
        run(glip, (picture(60, 60), ["dog"]))


def test_a_phrase_of_a_text_is_found_as_whole_words(glip: Glip) -> None:
    labels = glip.prepare_text("a dog and a dogma", ["dog", "a dog"]).chunks[0]
    assert labels.queries == (0, 1)
