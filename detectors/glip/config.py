"""Sizes of a GLIP as plain values: the five released ones, and any other from a JSON file."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectors.detector import DetectorError

_MOST_BLOCKS = 200  # of a Swin Transformer


class GlipConfigError(DetectorError, ValueError):
    """A description of a GLIP that cannot be built."""


@dataclass(frozen=True)
class SwinConfig:
    """Swin Transformer: widths double from stage to stage, starting at `embed_dim`."""

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    drop_path: float = 0.2  # rate of the last block; the first has 0

    def __post_init__(self) -> None:
        if sum(self.depths) > _MOST_BLOCKS:
            raise GlipConfigError(f"swin.depths {self.depths} has {sum(self.depths)} blocks: at most {_MOST_BLOCKS}")
        if not len(self.depths) == len(self.num_heads) == 4:
            raise GlipConfigError(f"swin has 4 stages, depths {self.depths} and num_heads {self.num_heads} name others")
        for stage, (width, heads) in enumerate(zip(self.widths, self.num_heads, strict=True)):
            if width % heads:
                raise GlipConfigError(f"swin stage {stage}: width {width} is not a multiple of its {heads} heads")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels after each stage (strides 4, 8, 16, 32)."""
        return tuple(self.embed_dim * 2**stage for stage in range(len(self.depths)))


@dataclass(frozen=True)
class TextConfig:
    """The BERT that reads the caption."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_position: int = 512
    type_vocab: int = 2
    max_length: int = 256  # tokens of a caption, [CLS] and [SEP] included
    dropout: float = 0.1


@dataclass(frozen=True)
class HeadConfig:
    """The fusion tower and the predictions on top of it."""

    channels: int = 256
    num_convs: int = 6
    early_fusion: bool = True
    fusion_dim: int | None = 2048
    fusion_heads: int | None = 8
    gn_groups: int = 16
    num_classes_minus_bg: int = 80  # of the unused class branch that the checkpoints carry
    fusion_dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.early_fusion and not (self.fusion_dim and self.fusion_heads):
            raise GlipConfigError("head.early_fusion needs head.fusion_dim and head.fusion_heads")
        if self.channels % self.gn_groups:
            raise GlipConfigError(f"head.channels {self.channels} is not a multiple of head.gn_groups {self.gn_groups}")


@dataclass(frozen=True)
class AnchorConfig:
    """One square anchor per location: `sizes[l]` pixels wide on the level of stride `strides[l]`."""

    sizes: tuple[int, ...] = (64, 128, 256, 512, 1024)
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.strides):
            raise GlipConfigError(f"anchors.sizes {self.sizes} and anchors.strides {self.strides} differ in number")


@dataclass(frozen=True)
class PostprocessConfig:
    """Rule from scores to detections of the released models."""

    threshold: float = 0.5  # default score threshold
    score_threshold: float = 0.05
    pre_nms_top_n_per_level: int = 1000
    nms_iou: float = 0.6
    detections_per_image: int = 100  # no limit when <= 0
    aggregate: str = "MEAN"  # of a label's token probabilities; see `postprocess.aggregate`
    centerness_weight: float = 1.0  # beside a label's probability, which weighs 1: the score is their geometric mean


@dataclass(frozen=True)
class ImageConfig:
    """Size of the network's input: short side `min_side`, unless the long one passes `max_side`."""

    min_side: int = 800
    max_side: int = 1333

    def resized(self, short: int | None, long: int | None = None) -> ImageConfig:
        """Another size. With a short side alone the long one keeps its proportion, or more where a 16:9 picture needs
        it: 544 sees 1920x1080 at 960x540, not at 906x510. Raises `GlipConfigError`."""
        if short is None or (short == self.min_side and long is None):
            short, long = self.min_side, self.max_side if long is None else long
        if long is None:
            wide = short * 16 // 9 // 32 * 32  # a multiple of the coarsest stride: nothing of it is padding
            long = max(round(short * self.max_side / self.min_side), wide)
        if not 32 <= short <= long:
            raise GlipConfigError(
                f"short side {short}, long side {long}: the short one is at least 32, the long one no less"
            )
        return ImageConfig(short, long)


@dataclass(frozen=True)
class GlipConfig:
    """A whole GLIP. The defaults are GLIP-T."""

    swin: SwinConfig = field(default_factory=SwinConfig)
    text: TextConfig = field(default_factory=TextConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)
    image: ImageConfig = field(default_factory=ImageConfig)

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> GlipConfig:
        """From the sections and names of this module, as JSON has them; missing ones keep GLIP-T's value.

        Other names are ignored, so that a file may carry more (captions, measurements).
        Raises `GlipConfigError` on a value of the wrong kind.
        """
        parts: dict[str, Any] = {}
        for section in dataclasses.fields(cls):
            given = values.get(section.name, {})
            if not isinstance(given, Mapping):
                raise GlipConfigError(f"section {section.name!r} of a GLIP's description is not a table: {given!r}")
            default = getattr(GLIP_T, section.name)
            parts[section.name] = dataclasses.replace(default, **_checked_fields(section.name, given, default))
        return cls(**parts)

    def to_plain(self) -> dict[str, Any]:
        """What `from_plain` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, path: Path) -> GlipConfig:
        """From a JSON file. Raises `GlipConfigError` when it is unreadable."""
        try:
            values = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise GlipConfigError(f"cannot read {path} as the description of a GLIP: {error}") from error
        if not isinstance(values, Mapping):
            raise GlipConfigError(f"{path} does not describe a GLIP: expected an object with sections such as 'swin'")
        return cls.from_plain(values)


_LARGEST_SIZE = 1 << 20  # of a width, a vocabulary, a picture: a config.json may come from anywhere
_MOST_LAYERS = 200
_LONGEST_LIST = 16


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1


def _checked_fields(section: str, given: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """The fields of `default`'s class found in `given`, lists made tuples, numbers checked."""
    known: dict[str, Any] = {}
    for item in dataclasses.fields(default):
        if item.name not in given:
            continue
        value, model = given[item.name], getattr(default, item.name)
        if isinstance(model, tuple):
            good = (
                isinstance(value, list | tuple)
                and 0 < len(value) <= _LONGEST_LIST
                and all(_is_whole(number) and 0 < number <= _LARGEST_SIZE for number in value)
            )
            value = tuple(int(number) for number in value) if good else value
        elif isinstance(model, str):
            good = isinstance(value, str)
        elif isinstance(model, bool):
            good = isinstance(value, bool)
        elif isinstance(model, int):
            largest = _MOST_LAYERS if item.name in ("num_layers", "num_convs") else _LARGEST_SIZE
            optional = item.name.startswith("fusion_")
            least = -1 if item.name == "detections_per_image" else 1
            good = (value is None and optional) or (type(value) is int and least <= value <= largest)
        else:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            good = is_number and abs(value) <= sys.float_info.max  # neither nan, infinite, nor too large a whole number
        if not good:
            raise GlipConfigError(
                f"{section}.{item.name} = {value!r} in a GLIP's description: expected such as {model!r}"
            )
        known[item.name] = value
    return known


GLIP_T = GlipConfig()
GLIP_T_A = dataclasses.replace(
    GLIP_T, head=dataclasses.replace(GLIP_T.head, early_fusion=False, fusion_dim=None, fusion_heads=None)
)
GLIP_L = dataclasses.replace(
    GLIP_T,
    swin=SwinConfig(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), window_size=12, drop_path=0.4),
    head=dataclasses.replace(GLIP_T.head, num_convs=8),
)

CONFIGS = {
    "glip-tiny-a": GLIP_T_A,
    "glip-tiny-b": GLIP_T,
    "glip-tiny-c": GLIP_T,
    "glip-tiny": GLIP_T,
    "glip-large": GLIP_L,
}
