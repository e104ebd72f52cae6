"""Names of a model's classes and the words that stand for them: synonyms, plurals, groups."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from detectors.detector import PromptError, read_words

_SYNONYMS = {
    "person": "man woman child boy girl kid baby adult pedestrian human people someone walker worker passer-by cyclist "
    "motorcyclist driver player lady gentleman guy figure",
    "bicycle": "bike pushbike cycle",
    "glasses": "spectacles eyeglasses",
    "helmet": "hard_hat",
    "hat": "cap",
    "sneakers": "trainers",
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
    "potted plant": "houseplant plant flowerpot pottedplant",
    "dining table": "table diningtable",
    "tv": "television monitor screen tv_set tvmonitor",
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
_NO_NAME = re.compile(r"(?:n/?a|none|background|__background__|label_?\d+|\d+)?", re.IGNORECASE)


class ClosedVocabulary:
    """The classes that a model knows, and which of them a query means."""

    def __init__(self, names: Sequence[str], model: str, described: str = "") -> None:
        """`names` are those of the network's scores, in order; `described` is how errors call them, with examples."""
        self.names = tuple(names)
        self._model = model
        self._table = _word_table(self.names)
        known = [name.lower() for name in self.names if not _NO_NAME.fullmatch(name)]
        self.known = len(known)
        examples = ", ".join(known[:2]) + (f" or {known[2]}" if len(known) > 2 else "")
        self._described = described or f"the {len(known)} names of its training data, such as {examples}"

    def classes_of(self, query: str) -> tuple[int, ...]:
        """The classes that a query means. Raises `PromptError`, with the ways out, for one that it cannot know."""
        words = _ARTICLE.sub("", _fold_words(query))
        for candidate in (words, self._singular(words)):
            if candidate in self._table:
                return self._table[candidate]
        last = self._singular(words).split(" ")[-1] if words else ""
        if last in self._table:
            kind = self.names[self._table[last][0]]
            hint = f"it does not distinguish kinds of {kind!r}; ask for {last!r} alone"
        elif near := difflib.get_close_matches(words, self._table, n=2, cutoff=0.75):
            hint = f"did you mean {' or '.join(map(repr, near))}"
        else:
            hint = f"it knows {self._described}, and their synonyms"
        raise PromptError(f"{self._model} cannot detect {query!r}: {hint}, or use glip-tiny, which reads any words")

    def classes_of_each(self, queries: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The classes of each query. Raises `PromptError` also for two queries of one meaning."""
        meant: dict[tuple[int, ...], str] = {}
        for query in queries:
            classes = self.classes_of(read_words(query))
            if (same := meant.setdefault(classes, query)) != query:
                name = self.names[classes[0]]
                raise PromptError(
                    f"queries {same!r} and {query!r} both mean {name!r} to {self._model}: keep one of them"
                )
        return tuple(meant)

    def _singular(self, words: str) -> str:
        """The last word without its plural."""
        head, blank, last = words.rpartition(" ")
        start = head + blank
        if last in _IRREGULAR:
            last = _IRREGULAR[last]
        elif start + last not in self._table and last.endswith("s"):
            cuts = (last[:-1], last[:-2])
            last = next((cut for cut in cuts if start + cut in self._table or cut in self._table), last)
        return start + last


def _word_table(names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The classes of each word: a model's own names first, then their synonyms, then groups."""
    usual = {word: name for name, words in _SYNONYMS.items() for word in [name, *_split_synonyms(words)]}
    own: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        if not _NO_NAME.fullmatch(name):
            for word in [_fold_words(name), *(_fold_words(part) for part in name.split("/"))]:
                own.setdefault(word, [])
                if number not in own[word]:
                    own[word].append(number)
    table = {word: tuple(numbers) for word, numbers in own.items()}
    # Names that are canonical themselves come first: the synonyms of "truck" are those of the truck, not of the van.
    for word, numbers in sorted(own.items(), key=lambda item: item[0] not in _SYNONYMS):
        canonical = usual.get(word, word)
        for synonym in [canonical, *_split_synonyms(_SYNONYMS.get(canonical, ""))]:
            table.setdefault(synonym, tuple(numbers))
    for group, members in _GROUPS.items():
        found = sorted({number for member in members for number in table.get(member, ())})
        if found:
            table.setdefault(group, tuple(found))
    return table


def _split_synonyms(words: str) -> list[str]:
    return [word.replace("_", " ") for word in words.split()]


def _fold_words(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").split())
