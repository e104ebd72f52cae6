"""The 80 names that NanoDet knows, the words that stand for them, and the score that is enough for each."""

from __future__ import annotations

import difflib
import re

from detectors.detector import PromptError

NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""COCO's categories, in the order of the network's scores."""

_SYNONYMS = {
    "person": "man woman child boy girl kid baby adult pedestrian human people someone walker worker passer-by cyclist "
    "motorcyclist driver player lady gentleman guy figure",
    "bicycle": "bike pushbike cycle",
    "car": "automobile sedan taxi cab suv hatchback minivan auto motorcar",
    "motorcycle": "motorbike scooter moped vespa",
    "airplane": "plane aeroplane aircraft jet airliner",
    "bus": "coach minibus omnibus",
    "train": "tram railcar locomotive streetcar",
    "truck": "lorry van pickup delivery_van pickup_truck",
    "boat": "ship sailboat yacht ferry vessel canoe kayak",
    "traffic light": "stoplight traffic_signal traffic_lights",
    "fire hydrant": "hydrant",
    "bird": "pigeon gull seagull duck crow swan goose",
    "cat": "kitten",
    "dog": "puppy hound",
    "horse": "pony",
    "sheep": "lamb",
    "cow": "cattle bull ox calf",
    "backpack": "rucksack knapsack",
    "handbag": "purse bag",
    "tie": "necktie",
    "suitcase": "luggage trolley_case",
    "sports ball": "ball football soccer_ball basketball tennis_ball",
    "cup": "mug",
    "couch": "sofa settee",
    "potted plant": "houseplant plant flowerpot",
    "dining table": "table",
    "tv": "television monitor screen tv_set",
    "laptop": "notebook",
    "remote": "remote_control",
    "cell phone": "mobile_phone phone smartphone mobile cellphone",
    "microwave": "microwave_oven",
    "oven": "stove cooker",
    "refrigerator": "fridge",
    "donut": "doughnut",
    "hair drier": "hair_dryer hairdryer",
    "teddy bear": "teddy",
    "skis": "ski",
}
_GROUPS = {
    "vehicle": ("bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    "motor vehicle": ("car", "motorcycle", "bus", "truck"),
    "road vehicle": ("bicycle", "car", "motorcycle", "bus", "truck"),
    "two-wheeler": ("bicycle", "motorcycle"),
    "animal": ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
    "pet": ("cat", "dog"),
    "furniture": ("chair", "couch", "bed", "dining table", "bench"),
    "piece of luggage": ("backpack", "handbag", "suitcase"),
}
_IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "knives": "knife",
    "buses": "bus", "ladies": "lady", "babies": "baby", "lorries": "lorry", "puppies": "puppy", "ponies": "pony",
    "calves": "calf", "oxen": "ox", "geese": "goose", "passers-by": "passer-by", "gentlemen": "gentleman",
}  # fmt: skip
_ARTICLE = re.compile(r"^(?:a|an|the|any|some|every|all|each)\s+")

THRESHOLD = 0.5
"""The score from which a person counts: on PETS09-S2L1 precision 0.98, recall 0.93 at IoU 0.5. With tracks HOTA is 49.3
and MOTA 78.4, against 45.2 and 62.3 at 0.4, where tracks begin on cones and signs."""
_OWN_THRESHOLDS = dict.fromkeys(("bicycle", "car", "motorcycle", "bus", "truck"), 0.3)
"""Vehicles score lower than persons on street footage: parked cars of PETS09-S2L1 0.3 to 0.5."""
_OTHERS = 0.4  # not measured on video: between both


def _words() -> dict[str, tuple[int, ...]]:
    table: dict[str, tuple[int, ...]] = {name: (number,) for number, name in enumerate(NAMES)}
    for name, words in _SYNONYMS.items():
        for word in words.split():
            table[word.replace("_", " ")] = (NAMES.index(name),)
    for group, members in _GROUPS.items():
        table[group] = tuple(NAMES.index(member) for member in members)
    return table


_TABLE = _words()


def classes_of(query: str) -> tuple[int, ...]:
    """The classes that a query means. Raises `PromptError`, with the ways out, for one that the model cannot know."""
    words = _ARTICLE.sub("", " ".join(query.lower().replace("_", " ").split()))
    for candidate in (words, _singular(words)):
        if candidate in _TABLE:
            return _TABLE[candidate]
    last = _singular(words).split(" ")[-1] if words else ""
    if last in _TABLE:
        hint = f"it does not distinguish kinds of {NAMES[_TABLE[last][0]]!r}; ask for {last!r} alone"
    elif near := difflib.get_close_matches(words, _TABLE, n=2, cutoff=0.75):
        hint = f"did you mean {' or '.join(map(repr, near))}"
    else:
        hint = f"it knows the {len(NAMES)} names of COCO, such as person, car or dog, and their synonyms"
    raise PromptError(f"coco-nano cannot detect {query!r}: {hint}, or use glip-tiny, which reads any words")


def _singular(words: str) -> str:
    """The last word without its plural."""
    head, blank, last = words.rpartition(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif head + blank + last not in _TABLE and last.endswith("s"):
        last = next((cut for cut in (last[:-1], last[:-2]) if head + blank + cut in _TABLE or cut in _TABLE), last)
    return head + blank + last


def enough_for(number: int) -> float:
    """The score, 0..1, from which a detection of a class counts."""
    name = NAMES[number]
    return THRESHOLD if name == "person" else _OWN_THRESHOLDS.get(name, _OTHERS)
