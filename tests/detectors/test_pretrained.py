"""RF-DETR, D-FINE, RT-DETRv2, OmDet-Turbo and SAM 3 at a size that computes at once, with random weights: the adapters
are what is tested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.models.hgnet_v2 import HGNetV2Config
from transformers.models.rf_detr.configuration_rf_detr import RfDetrDinov2Config
from transformers.models.sam3 import configuration_sam3 as sam3

from detectors import Detector, PromptError, Request, create_detector
from detectors.catalogue import CLOSED, OMDET, SAM3, find_model
from detectors.conformance import DetectorConformance, picture
from detectors.nanodet.vocabulary import NAMES
from detectors.pretrained import (
    IMAGENET,
    PLAIN,
    PicturePreparation,
    PretrainedError,
    load_pretrained,
    read_preparation,
)
from detectors.vocabulary import ClosedVocabulary
from tests.detectors.test_zero_shot import clip_vocabulary, swin

LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
TEXT = {
    "vocab_size": 300, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 16, "bos_token_id": 256, "eos_token_id": 257, "projection_dim": 16,
}  # fmt: skip
SMALL = {
    "encoder_hidden_dim": 16, "encoder_in_channels": [16, 16, 16], "encoder_ffn_dim": 16, "encoder_attention_heads": 2,
    "d_model": 16, "num_queries": 20, "decoder_in_channels": [16, 16, 16], "decoder_ffn_dim": 16, "decoder_layers": 2,
    "decoder_attention_heads": 2, "num_denoising": 0, **LABELS,
}  # fmt: skip


def rf_detr() -> Any:
    backbone = RfDetrDinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=16, num_windows=2,
        out_features=["stage1", "stage2"],
    )  # fmt: skip
    config = transformers.RfDetrConfig(
        backbone_config=backbone, d_model=32, decoder_layers=2, decoder_self_attention_heads=2,
        decoder_cross_attention_heads=2, num_queries=12, group_detr=1, decoder_ffn_dim=32, **LABELS,
    )  # fmt: skip
    return transformers.RfDetrForObjectDetection(config)


def d_fine() -> Any:
    backbone = HGNetV2Config(
        stem_channels=[3, 8, 8], stage_in_channels=[8, 8, 16, 16], stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 16, 16, 16], stage_num_blocks=[1, 1, 1, 1], stage_numb_of_layers=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"], embedding_size=8, hidden_sizes=[8, 16, 16, 16],
    )  # fmt: skip
    config = transformers.DFineConfig(backbone_config=backbone, feat_strides=[8, 16, 32], hidden_expansion=0.5, **SMALL)
    return transformers.DFineForObjectDetection(config)


def rt_detr() -> Any:
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    return transformers.RTDetrV2ForObjectDetection(transformers.RTDetrV2Config(backbone_config=backbone, **SMALL))


def omdet_turbo() -> Any:
    config = transformers.OmDetTurboConfig(
        backbone_config=swin(), text_config=transformers.CLIPTextConfig(**TEXT), image_size=64,
        text_projection_in_dim=16, text_projection_out_dim=16, task_encoder_hidden_dim=32, class_embed_dim=16,
        num_queries=20, vision_features_channels=[32, 32, 32], encoder_in_channels=[16, 32, 64],
        encoder_dim_feedforward=16, encoder_hidden_dim=32, encoder_attention_heads=2, decoder_hidden_dim=32,
        decoder_num_heads=2, decoder_num_layers=1, decoder_dim_feedforward=16,
        apply_layernorm_after_vision_backbone=False,
    )  # fmt: skip
    model = transformers.OmDetTurboForObjectDetection(config)
    torch.nn.init.normal_(model.language_backbone.text_projection)
    return model


def sam_3() -> Any:
    vision = sam3.Sam3ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=112,
        patch_size=14, window_size=4, global_attn_indexes=[1], pretrain_image_size=56,
    )  # fmt: skip
    sizes = {"hidden_size": 32, "num_attention_heads": 2}
    layers = {**sizes, "num_layers": 1, "intermediate_size": 16}
    config = transformers.Sam3Config(
        vision_config=sam3.Sam3VisionConfig(
            backbone_config=vision, fpn_hidden_size=32, backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]]
        ),
        text_config=transformers.CLIPTextConfig(**TEXT),
        geometry_encoder_config=sam3.Sam3GeometryEncoderConfig(**layers),
        detr_encoder_config=sam3.Sam3DETREncoderConfig(**layers),
        detr_decoder_config=sam3.Sam3DETRDecoderConfig(num_queries=10, **layers),
        mask_decoder_config=sam3.Sam3MaskDecoderConfig(**sizes),
    )
    model = transformers.Sam3Model(config)
    for weight in model.parameters():
        if weight.ndim > 1:  # the usual small weights hardly let a picture through
            torch.nn.init.normal_(weight, std=0.3)
    return model


MODELS = {
    "rf-detr-nano": rf_detr,
    "d-fine-nano": d_fine,
    "rt-detr-v2-r18": rt_detr,
    "omdet-turbo-tiny": omdet_turbo,
    "sam3": sam_3,
}
SIDES = {"sam3": 112}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, make in MODELS.items():
        folder = made[name] = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        make().save_pretrained(folder)
        if name in ("omdet-turbo-tiny", "sam3"):
            clip_vocabulary(folder)
        side = SIDES.get(name, 64)
        (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": side, "width": side}}))
    return made


class _Pretrained(DetectorConformance):
    name: str
    large = (1080, 1920)
    threshold = 0.1
    queries = ("person", "car")

    @pytest.fixture(autouse=True)
    def _folders(self, folders: dict[str, Path]) -> None:
        self._folder = folders[self.name]

    def make(self) -> Detector:
        return create_detector(self.name, weights=self._folder, device="cpu", threshold=self.threshold)

    def test_something_is_found(self, detector: Detector) -> None:
        prompt = detector.prepare(self.queries)
        [found] = detector.detect([Request(picture(120, 160), prompt, "camera", [0.0] * len(self.queries))])
        assert len(found) > 0
        assert found.confidence is not None
        assert (np.diff(found.confidence) <= 0).all()


class TestRfDetrConforms(_Pretrained):
    name = "rf-detr-nano"
    threshold = 0.02


class TestDFineConforms(_Pretrained):
    name = "d-fine-nano"
    threshold = 0.02


class TestRtDetrConforms(_Pretrained):
    name = "rt-detr-v2-r18"
    threshold = 0.02


class TestOmDetConforms(_Pretrained):
    name = "omdet-turbo-tiny"
    queries = ("person", "red car")


class TestSam3Conforms(_Pretrained):
    name = "sam3"
    queries = ("person", "red car")

    def test_masks_lie_over_the_whole_picture(self, detector: Detector) -> None:
        prompt = detector.prepare(self.queries)
        [found] = detector.detect([Request(picture(90, 160), prompt, "camera", [0.0, 0.0])])
        assert found.mask is not None
        assert found.mask.shape == (len(found), 90, 160)
        assert found.mask.dtype == np.bool_

    def test_a_query_s_results_do_not_depend_on_its_company(self, detector: Detector) -> None:
        image = picture(90, 160)
        both, alone = (
            detector.detect([Request(image, detector.prepare(words), "camera", [0.0] * len(words))])[0]
            for words in (["person", "red car"], ["red car"])
        )
        assert both.class_id is not None
        assert both.confidence is not None
        assert alone.confidence is not None
        np.testing.assert_allclose(both.confidence[both.class_id == 1], alone.confidence, atol=1e-5)

    def test_a_picture_passes_the_vision_encoder_once(self, detector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []
        plain = detector._model.get_vision_features
        monkeypatch.setattr(detector._model, "get_vision_features", lambda **given: calls.append(1) or plain(**given))
        queries = [f"{colour} {thing}" for colour in ("red", "blue", "old") for thing in ("car", "dog", "hat", "bag")]
        detector.detect([Request(picture(90, 160), detector.prepare(queries), "camera")])
        assert len(calls) == 1


def test_scores_of_a_closed_detector_are_those_of_transformers_own_processing(folders: dict[str, Path]) -> None:
    detector: Any = create_detector("rt-detr-v2-r18", weights=folders["rt-detr-v2-r18"], threshold=0.0, device="cpu")
    image = picture(64, 64)  # already at its size: no resizing, no difference
    processor = transformers.models.rt_detr.image_processing_pil_rt_detr.RTDetrImageProcessorPil(
        size={"height": 64, "width": 64}
    )
    with torch.inference_mode():
        out = detector._model(**processor(images=image[:, :, ::-1], return_tensors="pt"))
    expected = out.logits.sigmoid()[0, :, NAMES.index("dog")].max()
    [found] = detector.detect([Request(image, detector.prepare(["dog"]))])
    assert found.confidence[0] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["rt-detr-v2-r18", "sam3"])
def test_half_precision_gives_the_same_scores_roughly(folders: dict[str, Path], name: str, dtype: str) -> None:
    best = []
    for kind in ("float32", dtype):
        detector = create_detector(name, weights=folders[name], dtype=kind, device="cpu", threshold=0.0)
        [found] = detector.detect([Request(picture(90, 160), detector.prepare(["person"]))])
        assert found.confidence is not None
        best.append(float(found.confidence[0]))
    assert best[0] == pytest.approx(best[1], abs=0.05)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("excavator", "rt-detr-v2-r18 cannot detect 'excavator': it knows the 80 names of its training data"),
        ("red car", "does not distinguish kinds of 'car'"),
    ],
)
def test_what_a_closed_detector_cannot_know_is_refused(folders: dict[str, Path], query: str, message: str) -> None:
    detector = create_detector("rt-detr-v2-r18", weights=folders["rt-detr-v2-r18"], device="cpu")
    with pytest.raises(PromptError, match=message):
        detector.prepare([query])


def test_a_model_without_names_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["rt-detr-v2-r18"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["id2label"] = {str(number): f"LABEL_{number}" for number in range(80)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PretrainedError, match="names no classes"):
        create_detector("rt-detr-v2-r18", weights=tmp_path)


def test_long_queries_are_refused(folders: dict[str, Path]) -> None:
    for name, reader in (("sam3", "SAM 3"), ("omdet-turbo-tiny", "OmDet-Turbo")):
        detector = create_detector(name, weights=folders[name], device="cpu")
        with pytest.raises(PromptError, match=f"{reader} reads at most 16: write it in fewer words"):
            detector.prepare(["an uncommonly long description"])


def test_a_model_that_is_not_here_names_the_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GROUNDSTREAM_CACHE", str(tmp_path))
    for name in [*CLOSED, *OMDET, *SAM3]:
        assert find_model(name).repository.count("/") == 1
        with pytest.raises(PretrainedError, match=f"models pull {name}"):
            create_detector(name)
    with pytest.raises(ValueError, match="known are d-fine-nano, "):
        create_detector("d-fine-gigantic")


def test_a_missing_package_is_named(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **options: Any) -> Any:
        raise ImportError("\nTimmBackbone requires the timm library but it was not found")

    monkeypatch.setattr(transformers.OmDetTurboForObjectDetection, "from_pretrained", refuse)
    with pytest.raises(PretrainedError, match=r"requires the timm library.*install it"):
        load_pretrained(folders["omdet-turbo-tiny"], "OmDetTurboForObjectDetection", "CLIPTokenizer", "float32")


# -- how pictures are prepared ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, ((560, 560), IMAGENET)),
        ({"size": {"height": 384, "width": 512}, "do_normalize": False}, ((384, 512), PLAIN)),
        ({"size": 320}, ((320, 320), IMAGENET)),
        ({"image_mean": [127.5] * 3, "image_std": [255.0] * 3}, ((560, 560), ((0.5,) * 3, (1.0,) * 3))),
    ],
)
def test_pictures_are_prepared_as_the_folder_says(said: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert read_preparation(tmp_path, PicturePreparation((560, 560), IMAGENET)) == expected


def test_a_size_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 800}}')
    with pytest.raises(PretrainedError, match="expected height and width in pixels"):
        read_preparation(tmp_path, PicturePreparation((560, 560), IMAGENET))


# -- vocabularies -----------------------------------------------------------------------------------------------------


def test_own_names_come_before_synonyms_and_old_spellings_are_known() -> None:
    names = ["N/A", "Person", "Car", "Van", "Cabinet/shelf", "motorbike", "tvmonitor", "Street Lights", "truck"]
    vocabulary = ClosedVocabulary(names, "model")
    asked = {
        "a pedestrian": "Person", "people": "Person", "a van": "Van", "cars": "Car", "sedan": "Car",
        "shelf": "Cabinet/shelf", "cabinet": "Cabinet/shelf", "motorcycles": "motorbike", "tv": "tvmonitor",
        "street lights": "Street Lights", "lorry": "truck",
    }  # fmt: skip
    for query, name in asked.items():
        assert [names[number] for number in vocabulary.classes_of(query)] == [name], query
    assert {names[number] for number in vocabulary.classes_of("vehicles")} == {"Car", "motorbike", "truck"}
    assert vocabulary.known == len(names) - 1
    with pytest.raises(PromptError, match="both mean 'Person' to model"):
        vocabulary.classes_of_each(["man", "woman"])
