"""Bounds on what others control: depth and size of files and answers, and how long a peer may take."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from groundstream import GroundstreamError
from sinks import SinkError, open_sink
from tests.sinks.makes import events
from tests.sinks.peers import drip, raw_server

DEEP = "[" * 200_000 + "]" * 200_000
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


def read_script(path: Path) -> object:
    from detectors import create_detector

    return create_detector(f"scripted:{path}")


def read_network(path: Path) -> object:
    from detectors.glip.config import GlipConfig

    return GlipConfig.read(path)


def read_glamm(path: Path) -> object:
    from detectors.glamm.weights import open_folder

    (path.parent / "config.json").write_bytes(path.read_bytes())
    return open_folder(path.parent)


def read_truth(path: Path) -> object:
    from detectors.coco_data import read_data_set

    return read_data_set(path)


def read_labels(path: Path) -> object:
    from streamer.tasks.evaluate_events import read_labelled_events

    return read_labelled_events(path)


def read_configuration(path: Path) -> object:
    from streamer.config import load_config

    return load_config(path)


def read_results(path: Path) -> object:
    from streamer.web.results import _read_summary

    return _read_summary(path)


def read_tokens(path: Path) -> object:
    from streamer.web.access import _read_hashes

    return _read_hashes(path)


def read_overrides(path: Path) -> object:
    from streamer.web.config_document import _read_overrides

    return _read_overrides(path)


def read_yolo(path: Path) -> object:
    from detectors.labelled_data import read_labelled

    return read_labelled(path.rename(path.with_suffix(".yaml")))


def read_record(path: Path) -> object:
    from streamer.jobs.feeds import parse_record

    return parse_record(path.read_bytes()[:60_000])


def read_answer(path: Path) -> object:
    from streamer.web.client import _read_answer

    return _read_answer(200, "application/json", path.read_bytes())


READERS = [
    *(read_script, read_network, read_glamm, read_truth, read_labels, read_configuration, read_results, read_tokens),
    *(read_overrides, read_yolo, read_record, read_answer),
]


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_a_file_that_is_nested_too_deeply_is_one_sentence(read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text(DEEP)
    with pytest.raises(GroundstreamError) as found:
        read(path)
    assert len(str(found.value)) < 500
    assert "\n" not in str(found.value)


def test_an_earlier_summary_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    from streamer.jobs.result_folder import ResultFolder

    folder = ResultFolder(tmp_path, "a")
    folder.final.mkdir()
    (folder.final / "summary.json").write_text(DEEP)
    assert folder.read_summary() is None


@pytest.mark.parametrize(
    "text",
    [
        f"{BOMB}names: *j\ntrain: images\n",
        f"{BOMB}names: [dog]\ntrain: *j\n",
        f"{BOMB}names: [dog]\ntrain: images\npath: *j\n",
        "names: {dog: 0}\ntrain: images\n",
        "names: 7\ntrain: images\n",
        "names: []\ntrain: images\n",
        "names: [dog]\ntrain: images\nmade: 2001-99-99\n",
    ],
)
def test_names_of_classes_that_expand_or_are_no_texts_are_one_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text(text)
    with pytest.raises(GroundstreamError) as found:
        read_yolo(path)
    assert len(str(found.value)) < 500


@pytest.mark.parametrize("length", [2**63, 2**40, 99_000_000])
def test_the_length_of_a_header_that_weights_give_is_not_trusted(length: int, tmp_path: Path) -> None:
    from detectors.glip.convert import load_checkpoint
    from detectors.glip.training.tuned_prompt import TunedPrompt

    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"__metadata__":{}}')
    for read in (load_checkpoint, TunedPrompt.load):
        with pytest.raises(GroundstreamError):
            read(path)


def test_the_shape_of_a_tensor_that_weights_give_is_not_trusted(tmp_path: Path) -> None:
    from detectors.glip.convert import load_checkpoint

    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(GroundstreamError):
        load_checkpoint(path)


def test_tuned_words_whose_header_is_nested_too_deeply_are_one_sentence(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from detectors.glip.modeling.text import TextFeatures
    from detectors.glip.training.tuned_prompt import TunedPrompt

    tensors = {name: torch.ones(1, 1, 1) for name in TextFeatures._fields}
    for queries, labels in ((DEEP, "[]"), ("[]", DEEP), ("7", "7")):
        save_file(tensors, tmp_path / "a.safetensors", metadata={"queries": queries, "labels": labels})
        with pytest.raises(GroundstreamError):
            TunedPrompt.load(tmp_path / "a.safetensors")


def flood(head: bytes, sent: list[int]) -> Callable[[socket.socket], object]:
    """Sends without an end, as fast as it is read."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            sent.append(connection.send(b"x" * 65_536))

    return talk


async def refusal(address: str) -> str:
    sink = open_sink(address)
    try:
        with pytest.raises(SinkError) as found:
            await asyncio.wait_for(sink.send_batch(events(3)), 30)
    finally:
        await sink.aclose()
    return str(found.value)


@pytest.mark.anyio
@pytest.mark.parametrize("head", [b"$1000000\r\n", b"+OK", b"*1000000\r\n", b"-ERR "], ids=ascii)
async def test_a_redis_whose_answer_never_ends_is_given_up(head: bytes) -> None:
    pytest.importorskip("redis")
    with raw_server(drip(head, b"1")) as port:
        assert "does not finish an answer within 0.5 s" in await refusal(f"redis://127.0.0.1:{port}/key?timeout=0.5")


@pytest.mark.anyio
@pytest.mark.parametrize("head", [b"$9000000000\r\n", b"+OK"], ids=ascii)
async def test_a_redis_that_floods_is_given_up(head: bytes) -> None:
    pytest.importorskip("redis")
    sent: list[int] = []
    with raw_server(flood(head, sent)) as port:
        assert "answers with more than 4 MiB: is it Redis?" in await refusal(f"redis://127.0.0.1:{port}/key?timeout=20")
    assert sum(sent) < 64 << 20


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["redis", "mqtt", "http"])
async def test_closing_does_not_wait_for_a_peer_that_is_silent(kind: str) -> None:
    pytest.importorskip({"redis": "redis", "mqtt": "paho.mqtt"}.get(kind, "json"))
    with raw_server(lambda _connection: time.sleep(60)) as port:
        sink = open_sink(f"{kind}://127.0.0.1:{port}/a?timeout=60")
        sending = asyncio.create_task(sink.send_batch(events(1)))
        await asyncio.sleep(0.5)
        await asyncio.wait_for(sink.aclose(), 30)
        with pytest.raises(SinkError):
            await sending


def test_a_number_too_large_for_a_float_is_one_sentence_everywhere() -> None:
    from detectors.glip.config import GLIP_T, GlipConfig
    from streamer.tasks.mask_records import _read_box
    from trackers.options import TrackerOptions, build

    plain, tried = GLIP_T.to_plain(), 0
    for section, values in plain.items():
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, float):
                tried += 1
                with pytest.raises(GroundstreamError):
                    GlipConfig.from_plain({**plain, section: {**values, name: 10**400}})
    assert tried > 2
    with pytest.raises(ValueError, match="box is"):
        _read_box([0, 0, 1, 10**400])
    for field in dataclasses.fields(TrackerOptions):
        if isinstance(field.default, int | float):
            with pytest.raises(GroundstreamError):
                build("default", {field.name: 10**400})


@pytest.mark.parametrize("content", [b"", b"\x80\x02.", b"PK\x03\x04", b"\x80\x02]q\x00.", b"\0" * 500], ids=ascii)
def test_a_damaged_training_state_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    from detectors.glip.training.trainer import read_checkpoint

    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(GroundstreamError):
        read_checkpoint(tmp_path / "a.pt")


def test_a_checkpoint_that_asks_for_more_memory_than_there_is_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detectors import checkpoints
    from detectors.glip.convert import load_checkpoint

    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(checkpoints.torch, "load", refuse)
    (tmp_path / "a.pth").write_bytes(b"x")
    with pytest.raises(GroundstreamError, match="asks for more memory than there is"):
        load_checkpoint(tmp_path / "a.pth")


def test_an_error_that_quotes_a_checkpoint_prints_no_control_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detectors import checkpoints
    from detectors.glip.convert import load_checkpoint

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("could not convert '\x1b[2J\x07' to float\nsecond line")

    monkeypatch.setattr(checkpoints.torch, "load", refuse)
    (tmp_path / "a.pth").write_bytes(b"x")
    with pytest.raises(GroundstreamError, match=r"could not convert '\\x1b\[2J\\x07' to float\)") as found:
        load_checkpoint(tmp_path / "a.pth")
    assert str(found.value).isprintable()


def coco(annotations: object, categories: object = None) -> dict[str, object]:
    truth: dict[str, object] = {"images": [{"id": 1, "width": 64, "height": 48}], "annotations": annotations}
    return truth if categories is None else {**truth, "categories": categories}


def test_data_sets_whose_ids_cannot_be_compared_are_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    from detectors.coco_data import read_data_set
    from detectors.evaluation import coco_score

    box = {"image_id": 1, "bbox": [1, 2, 3, 4]}
    for number, rows in enumerate(([box], [{**box, "category_id": 1}, {**box, "category_id": "1"}])):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(coco(rows)))
        with pytest.raises(GroundstreamError):
            coco_score(read_data_set(path), [])


def test_what_a_data_set_says_beside_is_not_copied_into_the_evaluation(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    from detectors.coco_data import read_data_set
    from detectors.evaluation import coco_score

    deep: object = 0
    for _ in range(400):
        deep = [deep]
    row = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(coco([{**row, "note": deep}], [{"id": 1, "name": "dog", "note": deep}])))
    assert coco_score(read_data_set(path), [{**row, "score": 0.9, "note": deep}]).ap == pytest.approx(1.0)


def test_a_box_that_no_32_bit_float_holds_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "script.json"
    path.write_text(json.dumps([[{"query": "dog", "box": [0, 0, 1e300, 1]}]]))
    with pytest.raises(GroundstreamError, match="'box' must be"):
        read_script(path)


def test_a_track_that_appears_after_the_opening_ends_no_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import av

    from streamer.sources import open_sources
    from streamer.sources.decode import VideoReader
    from tests.support.clips import make_clip

    clip = make_clip(tmp_path / "a.ts", 12, size=(64, 48))
    raised = []

    class Container:
        """Raises as PyAV does at a packet of an unknown track, once in the middle."""

        def __init__(self, real: av.container.InputContainer) -> None:
            self._real = real

        def __getattr__(self, name: str) -> object:
            return getattr(self._real, name)

        def demux(self, stream: av.VideoStream) -> Iterator[av.Packet]:
            for number, packet in enumerate(self._real.demux(stream)):
                yield packet
                if number == 5 and not raised:
                    raised.append(number)
                    raise IndexError("list index out of range")

    begin = VideoReader.pictures

    def begin_with(reader: VideoReader) -> object:
        reader._container = Container(reader._container)
        return begin(reader)

    monkeypatch.setattr(VideoReader, "pictures", begin_with)
    (source,) = open_sources(str(clip))

    async def count() -> int:
        return len([frame async for frame in source])

    assert asyncio.run(count()) == 12
    assert raised == [5]
