"""transformers' detectors at a size that computes at once, with random weights: the adapters are what is tested."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from detectors import Detector, PromptError, Request, create_detector
from detectors.conformance import DetectorConformance, picture
from detectors.detector import DetectorError
from detectors.pretrained import FoundBoxes, PretrainedError
from detectors.registry import UnknownDetector
from detectors.zero_shot import GroundingDino

WORDS = ["person", "red", "car", "dog", "a", "with", "umbrella"]


def bert_vocabulary(folder: Path) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *WORDS, *"abcdefghijklmnopqrstuvwxyz"]
    tokens += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(tokens)) + "\n")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)


def swin() -> transformers.SwinConfig:
    return transformers.SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip


def grounding_dino(folder: Path, network: str) -> None:
    small = {
        "backbone_config": swin(), "d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 20,
        "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "max_text_len": 32, "decoder_bbox_embed_share": network == "GroundingDino",
        "text_config": transformers.BertConfig(
            vocab_size=80, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ),
    }  # fmt: skip
    config = getattr(transformers, f"{network}Config")(**small)
    torch.manual_seed(0)
    getattr(transformers, f"{network}ForObjectDetection")(config).save_pretrained(folder)
    bert_vocabulary(folder)


def owlv2(folder: Path) -> None:
    text = {
        "vocab_size": 300, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 16, "bos_token_id": 256, "eos_token_id": 257,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 64, "patch_size": 16,
    }  # fmt: skip
    config = transformers.Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
    torch.manual_seed(0)
    transformers.Owlv2ForObjectDetection(config).save_pretrained(folder)
    clip_vocabulary(folder)


def clip_vocabulary(folder: Path) -> None:
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    folders = {name: home / name for name in ("grounding-dino-tiny", "mm-grounding-dino-tiny", "owlv2-base")}
    for folder in folders.values():
        folder.mkdir()
    grounding_dino(folders["grounding-dino-tiny"], "GroundingDino")
    grounding_dino(folders["mm-grounding-dino-tiny"], "MMGroundingDino")
    folders["llmdet-tiny"] = folders["mm-grounding-dino-tiny"]  # the same network
    owlv2(folders["owlv2-base"])
    return folders


class _Family(DetectorConformance):
    name: str
    large = (1080, 1920)
    threshold = 0.05

    @pytest.fixture(autouse=True)
    def _models(self, models: dict[str, Path]) -> None:
        self._folder = models[self.name]

    def make(self) -> Detector:
        detector = create_detector(self.name, weights=self._folder, device="cpu", threshold=self.threshold)
        if isinstance(detector, GroundingDino):
            detector._sides = (96, 192)
        return detector


class TestGroundingDinoConforms(_Family):
    name = "grounding-dino-tiny"


class TestMMGroundingDinoConforms(_Family):
    name = "mm-grounding-dino-tiny"


class TestLlmdetConforms(_Family):
    name = "llmdet-tiny"


class TestOwlv2Conforms(_Family):
    name = "owlv2-base"


@pytest.mark.parametrize("name", ["grounding-dino-tiny", "mm-grounding-dino-tiny", "owlv2-base"])
def test_something_is_found_at_all(models, name):
    detector = create_detector(name, weights=models[name], threshold=0.0)
    [found] = detector.detect([Request(picture(120, 160), detector.prepare(["person", "red car"]))])
    assert len(found) > 0
    assert (np.diff(found.confidence) <= 0).all()


def test_a_caption_holds_each_query_and_its_tokens(models):
    detector = create_detector("grounding-dino-tiny", weights=models["grounding-dino-tiny"])
    prompt = detector.prepare(["Red Car", "a person with umbrella"])
    tokens = detector._tokenizer.convert_ids_to_tokens(prompt.input_ids[0])
    assert tokens == ["[CLS]", "red", "car", ".", "a", "person", "with", "umbrella", ".", "[SEP]"]
    assert prompt.spans == ((1, 2), (4, 5, 6, 7))


def test_scores_of_grounding_dino_are_those_of_transformers_own_processing(models):
    folder = models["grounding-dino-tiny"]
    detector = create_detector("grounding-dino-tiny", weights=folder, threshold=0.0)
    detector._sides = (64, 160)
    image = picture(64, 96)  # already at its size: no resizing, no difference
    processor = transformers.models.grounding_dino.image_processing_pil_grounding_dino.GroundingDinoImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": 160}
    )
    pixels = processor(images=image[:, :, ::-1], return_tensors="pt")
    prompt = detector.prepare(["person"])
    out = detector._model(**pixels, input_ids=prompt.input_ids, attention_mask=prompt.attention_mask)
    expected = out.logits.sigmoid()[0, :, 1].max()
    [found] = detector.detect([Request(image, prompt)])
    assert found.confidence[0] == pytest.approx(float(expected), abs=1e-4)


def test_a_prompt_that_is_too_long_names_the_first_query_lost(models):
    detector = create_detector("grounding-dino-tiny", weights=models["grounding-dino-tiny"])
    words = [f"{first} {second}" for first in WORDS for second in WORDS]
    with pytest.raises(PromptError, match=r"at most 32: drop the queries from 'red dog' on"):
        detector.prepare(words)


def test_a_long_query_for_owlv2_is_named(models):
    detector = create_detector("owlv2-base", weights=models["owlv2-base"])
    with pytest.raises(PromptError, match="OWLv2 reads at most 16"):
        detector.prepare(["an uncommonly long description"])


def test_a_query_without_words_is_refused(models):
    detector = create_detector("grounding-dino-tiny", weights=models["grounding-dino-tiny"])
    with pytest.raises(PromptError, match="no word"):
        detector.prepare(["person", "..."])


def test_weights_that_are_not_here_are_reported_with_the_ways_out(monkeypatch, tmp_path):
    monkeypatch.setenv("GROUNDSTREAM_CACHE", str(tmp_path))
    with pytest.raises(PretrainedError, match=r"models pull owlv2-base.*weights.*coco-nano"):
        create_detector("owlv2-base")


def test_a_folder_without_a_model_and_a_damaged_one_are_reported(models, tmp_path):
    with pytest.raises(PretrainedError, match=r"config\.json"):
        create_detector("owlv2-base", weights=tmp_path)
    for file in models["owlv2-base"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(PretrainedError, match="cannot be read"):
        create_detector("owlv2-base", weights=tmp_path)


def test_an_unknown_size_of_a_family_is_reported_with_the_known_ones():
    with pytest.raises(ValueError, match="known are owlv2-base, owlv2-large"):
        create_detector("owlv2-huge")
    assert issubclass(UnknownDetector, ValueError)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_finds_what_single_precision_finds(models, dtype):
    image = np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8)
    counts = []
    for kind in ("float32", dtype):
        detector = create_detector(
            "grounding-dino-tiny", weights=models["grounding-dino-tiny"], threshold=0.01, dtype=kind, device="cpu"
        )
        counts.append(len(detector.detect([Request(image, detector.prepare(["person"]))])[0]))
    assert counts[1] > counts[0] / 2 > 0


def test_scores_that_are_not_numbers_are_an_error(models):
    detector = create_detector("grounding-dino-tiny", weights=models["grounding-dino-tiny"], device="cpu")
    detector._find_boxes = lambda images, prompt: FoundBoxes(torch.full((1, 3, 1), float("nan")), torch.zeros(1, 3, 4))
    with pytest.raises(DetectorError, match="not numbers in float32"):
        detector.detect([Request(np.zeros((60, 60, 3), np.uint8), detector.prepare(["person"]))])


def test_phrases_of_a_sentence_own_their_tokens(models):
    detector = create_detector("grounding-dino-tiny", weights=models["grounding-dino-tiny"], threshold=0.0)
    prompt = detector.prepare_text("a Person with a red umbrella", ["a Person", "a red umbrella"])
    tokens = detector._tokenizer.convert_ids_to_tokens(prompt.input_ids[0])
    assert tokens == ["[CLS]", "a", "person", "with", "a", "red", "umbrella", ".", "[SEP]"]
    assert prompt.spans == ((1, 2), (4, 5, 6))
    [found] = detector.detect([Request(picture(120, 160), prompt)])
    assert set(found.data["class_name"]) <= {"a Person", "a red umbrella"}
    assert len(found)
