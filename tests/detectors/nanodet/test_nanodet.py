"""coco-nano: the contract with random weights, its words, and with the published weights what it finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from detectors import Detector, PromptError, Request, create_detector
from detectors.conformance import DetectorConformance
from detectors.detector import OptionError
from detectors.nanodet import vocabulary, weights
from detectors.nanodet.detector import NanoDetector, _calibrated
from detectors.nanodet.network import NanoDet
from detectors.nanodet.weights import NanoWeightsError, load_network
from detectors.overlap import ious


@pytest.fixture(scope="session")
def network() -> NanoDet:
    torch.manual_seed(1)
    network = NanoDet().eval().requires_grad_(False)
    for module in network.convolutions():
        module.weight.mul_(2.0)
    return network


@pytest.fixture
def published(shared: Path) -> Path:
    path = shared / "models/nanodet/nanodet.bin"
    if not path.is_file():
        pytest.skip("needs the published weights")
    return path


class TestNanoDet(DetectorConformance):
    queries = ("person", "a car")

    @pytest.fixture(autouse=True)
    def _network(self, network: NanoDet) -> None:
        self._made = NanoDetector(network, dtype="float32", threshold=0.05)

    def make(self) -> Detector:
        return self._made


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("person", "person"),
        ("A woman", "person"),
        ("pedestrians", "person"),
        ("the lorries", "truck"),
        ("people", "person"),
        ("buses", "bus"),
        ("traffic lights", "traffic light"),
        ("TV", "tv"),
        ("mobile phone", "cell phone"),
        ("wine_glass", "wine glass"),
        ("dogs", "dog"),
        ("skis", "skis"),
    ],
)
def test_words_mean_the_names_that_the_model_knows(query: str, name: str) -> None:
    assert [vocabulary.NAMES[number] for number in vocabulary.VOCABULARY.classes_of(query)] == [name]


def test_groups_mean_several_names() -> None:
    animals = {vocabulary.NAMES[number] for number in vocabulary.VOCABULARY.classes_of("an animal")}
    assert animals >= {"dog", "bird", "giraffe"}


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("a red car", "does not distinguish kinds of 'car'; ask for 'car' alone, or use glip-tiny"),
        ("excavator", "knows the 80 names of COCO"),
        ("persom", "did you mean 'person'"),
    ],
)
def test_what_it_cannot_know_is_refused_by_name(query: str, sentence: str) -> None:
    with pytest.raises(PromptError, match=sentence):
        vocabulary.VOCABULARY.classes_of(query)


def test_two_queries_of_one_meaning_are_refused(network: NanoDet) -> None:
    with pytest.raises(PromptError, match="'man' and 'woman' both mean 'person'"):
        NanoDetector(network).prepare(["man", "woman"])


def test_each_name_has_its_own_threshold_on_one_scale() -> None:
    enough = torch.tensor([vocabulary.enough_for(number) for number in range(80)])
    assert enough[0] == vocabulary.THRESHOLD > enough[vocabulary.NAMES.index("car")]
    assert torch.allclose(_calibrated(enough, enough), torch.tensor(vocabulary.THRESHOLD))
    assert torch.equal(_calibrated(torch.zeros(80), enough), torch.zeros(80))
    assert torch.allclose(_calibrated(torch.ones(80), enough), torch.ones(80))


def test_wrong_options_are_refused(network: NanoDet) -> None:
    for options, sentence in (
        ({"side": 100}, "multiple of 32"),
        ({"threshold": 2.0}, "0..1"),
        ({"dtype": "int8"}, "unknown precision"),
        ({"largest_batch": 0}, "at least 1"),
    ):
        with pytest.raises(OptionError, match=sentence):
            NanoDetector(network, **options)  # type: ignore[arg-type]


def test_missing_and_wrong_weights_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUNDSTREAM_CACHE", str(tmp_path))
    with pytest.raises(NanoWeightsError, match="groundstream models pull coco-nano"):
        create_detector("coco-nano")
    (tmp_path / "other.bin").write_bytes(b"something else")
    with pytest.raises(NanoWeightsError, match="its sha256 differs"):
        create_detector("coco-nano", weights=tmp_path / "other.bin")
    (tmp_path / "x.safetensors").write_bytes(b"x")
    with pytest.raises(NanoWeightsError, match="cannot read the weights"):
        create_detector("coco-nano", weights=tmp_path / "x.safetensors")


def test_the_published_weights_become_a_folder(published: Path, tmp_path: Path) -> None:
    folder = weights.write_folder(tmp_path / "coco-nano", published)
    assert (folder / weights.WEIGHTS).stat().st_mode & 0o777 == 0o644
    assert "Apache License" in (folder / weights.NOTICE).read_text()
    for own, other in zip(load_network(folder).parameters(), load_network(published).parameters(), strict=True):
        assert torch.equal(own, other)


def test_the_published_weights_find_pedestrians(published: Path, shared: Path) -> None:
    """The figures that the published network gave: precision 0.93 and recall 0.98 at 0.4, 0.98 and 0.93 at 0.5."""
    cv2 = pytest.importorskip("cv2")
    folder = shared / "data/mot/PETS09-S2L1"
    video = cv2.VideoCapture(str(folder / "video.mp4"))
    if not video.isOpened():
        pytest.skip("needs the PETS video")
    truth = np.loadtxt(folder / "gt.txt", delimiter=",")
    detector = create_detector("coco-nano", weights=published, dtype="float32")
    prompt = detector.prepare(["person"])
    found = {}
    for number in range(701):
        _, image = video.read()
        if number % 100 == 0:
            found[number] = detector.detect([Request(np.asarray(image), prompt)])[0]
    for score, precision, recall in ((0.4, 0.93, 0.98), (0.5, 0.98, 0.93)):
        hits = boxes = people = 0
        for number, one in found.items():
            own = truth[truth[:, 0] == number + 1][:, 2:6]
            own[:, 2:] += own[:, :2]
            assert one.confidence is not None
            sure = one.xyxy[one.confidence >= score]
            hits += int((ious(sure, own).max(axis=0) >= 0.5).sum())
            boxes, people = boxes + len(sure), people + len(own)
        assert hits / boxes == pytest.approx(precision, abs=0.01)
        assert hits / people == pytest.approx(recall, abs=0.01)


def test_colours_are_in_the_order_of_the_training(published: Path) -> None:
    detector = create_detector("coco-nano", weights=published, dtype="float32", threshold=0.01)
    image = np.zeros((120, 160, 3), np.uint8)
    image[30:90, 40:100] = (20, 40, 220)
    prompt = detector.prepare(["traffic light", "stop sign", "apple"])
    first, second = detector.detect([Request(image, prompt), Request(np.ascontiguousarray(image[..., ::-1]), prompt)])
    assert not np.array_equal(first.confidence, second.confidence)
