"""The words of the street: what may be said, and of which things it is true.

The language is small and closed: an article, a size, a colour, a noun and clauses. Every text of it has one meaning,
and a meaning is true, false or unclear of a thing; so phrases that are true, and phrases of which nothing in the
picture is true, are both exactly known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from streamer.street.dice import SeededDice
from streamer.street.world import BICYCLE_COLOURS, BUS_COLOURS, CAR_COLOURS, CLOTHES_COLOURS, DOG_COLOURS, StreetObject

if TYPE_CHECKING:
    from streamer.street.truth import SeenObject


@dataclass(frozen=True, slots=True)
class PhraseMeaning:
    """What a phrase says. Empty fields say nothing."""

    kinds: frozenset[str]
    sex: str = ""
    colour: str = ""
    size: str = ""
    attributes: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()
    side: str = ""


@dataclass(frozen=True, slots=True)
class _NounEntry:
    singular: str
    plural: str
    meaning: PhraseMeaning


def _noun_entry(singular: str, plural: str, *kinds: str, **parts: object) -> _NounEntry:
    fields = {name: frozenset(value) if isinstance(value, tuple) else value for name, value in parts.items()}
    return _NounEntry(singular, plural, replace(PhraseMeaning(frozenset(kinds)), **fields))  # type: ignore[arg-type]


NOUNS: tuple[_NounEntry, ...] = (
    _noun_entry("person", "people", "person"),
    _noun_entry("human", "humans", "person"),
    _noun_entry("pedestrian", "pedestrians", "person", excluded=("bicycle",)),
    _noun_entry("man", "men", "person", sex="man"),
    _noun_entry("woman", "women", "person", sex="woman"),
    _noun_entry("child", "children", "person", sex="child"),
    _noun_entry("kid", "kids", "person", sex="child"),
    _noun_entry("cyclist", "cyclists", "person", attributes=("bicycle",)),
    _noun_entry("car", "cars", "car"),
    _noun_entry("automobile", "automobiles", "car"),
    _noun_entry("bus", "buses", "bus"),
    _noun_entry("vehicle", "vehicles", "car", "bus"),
    _noun_entry("bicycle", "bicycles", "bicycle"),
    _noun_entry("bike", "bikes", "bicycle"),
    _noun_entry("dog", "dogs", "dog"),
    _noun_entry("delivery robot", "delivery robots", "robot"),
    _noun_entry("robot", "robots", "robot"),
)
"""The first noun of a kind is its plain name."""

KINDS = ("person", "car", "bus", "bicycle", "dog")
"""What the everyday street shows; the courier street has robots as well."""
COLOURS: dict[str, tuple[str, ...]] = {
    "person": tuple(CLOTHES_COLOURS),
    "car": tuple(CAR_COLOURS),
    "bus": tuple(BUS_COLOURS),
    "bicycle": tuple(BICYCLE_COLOURS),
    "dog": tuple(DOG_COLOURS),
}
ATTRIBUTES: dict[str, dict[str, tuple[str, ...]]] = {
    "person": {
        "umbrella": ("with an umbrella", "carrying an umbrella", "under an umbrella"),
        "backpack": ("with a backpack", "wearing a backpack"),
        "hat": ("with a hat", "wearing a hat"),
        "suitcase": ("with a suitcase", "pulling a suitcase"),
        "dog": ("walking a dog", "with a dog"),
        "bicycle": ("on a bicycle", "riding a bicycle", "on a bike"),
        "helmet": ("with a helmet", "wearing a helmet"),
    },
    "dog": {"leash": ("on a leash",)},
}
"""What follows the noun, by kind and attribute; the first form is the plain one."""
_BEFORE_COLOUR: dict[str, str] = {"parked": "car"}
_AFTER_COLOUR: dict[str, str] = {"double-decker": "bus"}
"""Attributes that stand before the noun, and the kind they belong to."""
_SIZES: dict[str, tuple[str, ...]] = {"large": ("large", "big"), "small": ("small", "little")}
SIZED_KINDS = ("bus", "dog")
_COLOUR_CLAUSES = ("in {}", "dressed in {}", "wearing {}")
_SIDES = ("left", "right")
_ARTICLES = ("a", "an", "the")
_SPELLINGS = {"gray": "grey"}

_MIDDLE = 0.42, 0.58
"""Between these fractions of the width nothing is left or right."""


# -- truth ---------------------------------------------------------------------------------------------------------


def meaning_holds(meaning: PhraseMeaning, thing: StreetObject, middle: float | None = None) -> bool | None:
    """Whether `meaning` is true of `thing`, whose middle is at the fraction `middle` of the width; None is unclear."""
    if thing.kind not in meaning.kinds:
        return None if len(meaning.kinds) > 1 and thing.kind in ("bicycle", "robot") else False
    if meaning.sex and thing.sex != meaning.sex:
        return False
    if meaning.colour and thing.colour != meaning.colour:
        return False
    if meaning.size and thing.size != meaning.size:
        return False if thing.size else None
    if not meaning.attributes <= thing.attributes or meaning.excluded & thing.attributes:
        return False
    if meaning.side and middle is not None:
        if _MIDDLE[0] <= middle <= _MIDDLE[1]:
            return None
        return (middle < 0.5) == (meaning.side == "left")
    return True


def matching_objects(text: str, seen: Sequence[SeenObject]) -> list[SeenObject] | None:
    """Of which of `seen` the text is true; None where the text is not in the language or something is unclear."""
    meaning = parse_phrase(text)
    if meaning is None:
        return None
    verdicts = [meaning_holds(meaning, one.thing, one.middle) for one in seen]
    if None in verdicts:
        return None
    return [one for one, verdict in zip(seen, verdicts, strict=True) if verdict]


# -- reading -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def parse_phrase(text: str) -> PhraseMeaning | None:
    """The meaning of a text of the language, however it is put; None for any other text."""
    words = [_SPELLINGS.get(word, word) for word in re.findall(r"[a-z\-]+", text.lower())]
    if words and words[0] in _ARTICLES:
        words = words[1:]
    size, words = _take_known(words, {form: name for name, forms in _SIZES.items() for form in forms})
    every_colour = {colour: colour for colours in COLOURS.values() for colour in colours}
    state, words = _take_known(words, {name: name for name in _BEFORE_COLOUR})
    colour, words = _take_known(words, every_colour)
    build, words = _take_known(words, {name: name for name in _AFTER_COLOUR})
    for count in (2, 1):
        name = " ".join(words[:count])
        noun = next((noun for noun in NOUNS if name in (noun.singular, noun.plural)), None)
        if noun is not None:
            meaning = noun.meaning
            meaning = replace(meaning, attributes=meaning.attributes | ({state, build} - {""}))
            return _read_clauses(replace(meaning, colour=colour, size=size), " ".join(words[count:]))
    return None


def _take_known(words: list[str], known: dict[str, str]) -> tuple[str, list[str]]:
    if words and words[0] in known:
        return known[words[0]], words[1:]
    return "", words


def _read_clauses(meaning: PhraseMeaning, rest: str) -> PhraseMeaning | None:
    """Read what follows the noun, clause by clause."""
    kind = next(iter(meaning.kinds)) if len(meaning.kinds) == 1 else ""
    while rest:
        for attribute, forms in ATTRIBUTES.get(kind, {}).items():
            form = next((form for form in forms if (rest + " ").startswith(form + " ")), None)
            if form is not None:
                meaning = replace(meaning, attributes=meaning.attributes | {attribute})
                rest = rest[len(form) :].strip()
                break
        else:
            colour = re.match(r"(?:dressed in|in|wearing) (\w+)(?: |$)", rest)
            side = re.match(r"on the (left|right)(?: |$)", rest)
            if colour and kind == "person" and colour[1] in CLOTHES_COLOURS:
                meaning = replace(meaning, colour=colour[1])
            elif side:
                meaning = replace(meaning, side=side[1])
            else:
                return None
            rest = rest[(colour or side).end() :].strip()  # type: ignore[union-attr]
    return meaning


# -- saying --------------------------------------------------------------------------------------------------------


def nouns_of(meaning: PhraseMeaning) -> list[_NounEntry]:
    """The nouns that say a part of `meaning` and nothing more, the plain name first."""
    return [
        noun
        for noun in NOUNS
        if noun.meaning.kinds == meaning.kinds
        and noun.meaning.sex == meaning.sex
        and noun.meaning.excluded == meaning.excluded
        and noun.meaning.attributes <= meaning.attributes
    ]


def say_meaning(
    meaning: PhraseMeaning, *, article: str = "a", plural: bool = False, noun: int = 0, clause: int = 0, size: int = 0
) -> str:
    """The meaning in words. `noun`, `clause` and `size` choose among synonyms; `article` may be "", "a" or "the"."""
    nouns = nouns_of(meaning)
    chosen = nouns[noun % len(nouns)]
    kind = next(iter(meaning.kinds)) if len(meaning.kinds) == 1 else ""
    before = [_SIZES[meaning.size][size % 2]] if meaning.size else []
    build: list[str] = []
    after: list[str] = []
    for attribute in sorted(meaning.attributes - chosen.meaning.attributes):
        if attribute in _BEFORE_COLOUR:
            before.append(attribute)
        elif attribute in _AFTER_COLOUR:
            build.append(attribute)
        else:
            forms = ATTRIBUTES[kind][attribute]
            after.append(forms[clause % len(forms)])
    if meaning.colour and kind == "person":
        after.insert(0, _COLOUR_CLAUSES[clause % len(_COLOUR_CLAUSES)].format(meaning.colour))
    elif meaning.colour:
        before.append(meaning.colour)
    if meaning.side:
        after.append(f"on the {meaning.side}")
    words = " ".join([*before, *build, chosen.plural if plural else chosen.singular, *after])
    if not article or (plural and article == "a"):
        return words
    if article == "a":
        article = "an" if words[0] in "aeiou" else "a"
    return f"{article} {words}"


def phrase_variants(text: str) -> tuple[str, ...]:
    """Every way the language has to say the same: articles, plurals, synonyms. Raises ValueError for other texts."""
    meaning = parse_phrase(text)
    if meaning is None:
        raise ValueError(f"{text!r} is not a phrase of the street: it knows {', '.join(n.singular for n in NOUNS)}")
    forms = 3 if meaning.attributes or meaning.colour else 1
    return tuple(
        dict.fromkeys(
            say_meaning(meaning, article=article, plural=plural, noun=noun, clause=clause, size=size)
            for noun in range(len(nouns_of(meaning)))
            for plural in (False, True)
            for article in ("", "a", "the")
            for clause in range(forms)
            for size in range(2 if meaning.size else 1)
        )
    )


def true_meanings(thing: StreetObject) -> list[PhraseMeaning]:
    """What may be said of a thing wherever it is, from the plain to the particular."""
    plain = PhraseMeaning(frozenset({thing.kind}))
    spoken = sorted(thing.attributes & _spoken_forms(thing.kind))
    bases = [plain]
    if thing.kind == "person":
        bases.append(replace(plain, sex=thing.sex))
    meanings = list(bases)
    if thing.kind in COLOURS:
        meanings += [replace(base, colour=thing.colour) for base in bases]
    if thing.size:
        meanings.append(replace(plain, size=thing.size))
        meanings.append(replace(plain, size=thing.size, colour=thing.colour))
    meanings += [replace(base, attributes=frozenset({attribute})) for base in bases for attribute in spoken]
    meanings += [replace(plain, attributes=frozenset({one}), colour=thing.colour) for one in spoken]
    if thing.kind in ("car", "bus"):
        meanings.append(PhraseMeaning(frozenset({"car", "bus"})))
        meanings.append(PhraseMeaning(frozenset({"car", "bus"}), colour=thing.colour))
    if thing.kind == "person" and "bicycle" not in thing.attributes:
        meanings.append(replace(plain, excluded=frozenset({"bicycle"})))
    return meanings


def _spoken_forms(kind: str) -> frozenset[str]:
    before_noun = (_BEFORE_COLOUR | _AFTER_COLOUR).items()
    return frozenset(ATTRIBUTES.get(kind, {})) | {name for name, owner in before_noun if owner == kind}


def true_phrases(one: SeenObject, others: Iterable[SeenObject]) -> tuple[str, ...]:
    """What is true of `one` among all that is seen, in plain words, most general first.

    A side is named only where that points at this one thing alone.
    """
    texts = [say_meaning(meaning) for meaning in true_meanings(one.thing)]
    for side in _SIDES:
        meaning = PhraseMeaning(frozenset({one.thing.kind}), side=side)
        if meaning_holds(meaning, one.thing, one.middle) and not any(
            meaning_holds(meaning, other.thing, other.middle) is not False
            for other in others
            if other.thing.identity != one.thing.identity
        ):
            texts.append(say_meaning(meaning, article="the"))
    return tuple(texts)


@dataclass(frozen=True, slots=True)
class PhraseGrounding:
    """A phrase and the identities of everything it is true of; none for what is absent."""

    text: str
    identities: frozenset[int] = field(default_factory=frozenset)


def ground_phrases(
    seen: Sequence[SeenObject],
    dice: SeededDice,
    *,
    present: int,
    absent: int,
    hidden: Sequence[SeenObject] = (),
    kinds: Sequence[str] = KINDS,
) -> list[PhraseGrounding]:
    """Phrases for one picture in random words: up to `present` true of something, `absent` true of nothing.

    No two say the same, and none is unclear of anything in the picture, what is `hidden` included.
    """
    everything = [*seen, *hidden]
    pool: list[PhraseMeaning] = []
    for one in seen:
        pool += [meaning for meaning in true_meanings(one.thing) if meaning not in pool]
    said: list[PhraseGrounding] = []
    used: set[PhraseMeaning] = set()
    for _ in range(present * 4):
        if not pool or len(said) == present:
            break
        one = dice.pick(seen)  # first a thing, so that rare things are named as often as common ones
        meaning = dice.pick(true_meanings(one.thing))
        if meaning in used or any(meaning_holds(meaning, other.thing, other.middle) is None for other in everything):
            continue
        used.add(meaning)
        identities = frozenset(
            other.thing.identity for other in seen if meaning_holds(meaning, other.thing, other.middle)
        )
        said.append(PhraseGrounding(say_freely(meaning, dice), identities))
    for meaning in absent_meanings(everything, dice, absent, kinds):
        if meaning not in used:
            used.add(meaning)
            said.append(PhraseGrounding(say_freely(meaning, dice)))
    return said


def contrasting_phrases(
    seen: Sequence[SeenObject], dice: SeededDice, hidden: Sequence[SeenObject] = ()
) -> list[PhraseGrounding]:
    """What is true of one thing, and everything that differs from it in one word: each colour, or man, woman, child.

    In random words, in the order of that word; none is unclear of anything in the picture.
    """
    one = dice.pick(seen)
    families = [family for meaning in true_meanings(one.thing) for family in _meaning_families(meaning)]
    return _ground_meanings(dice.pick(families), seen, hidden, dice) if families else []


def colour_phrases(
    seen: Sequence[SeenObject], dice: SeededDice, hidden: Sequence[SeenObject] = (), kinds: Sequence[str] = KINDS
) -> list[PhraseGrounding]:
    """Every kind in every colour that it comes in, in random words; none is unclear of anything in the picture."""
    meanings = [PhraseMeaning(frozenset({kind}), colour=colour) for kind in kinds for colour in COLOURS.get(kind, ())]
    return _ground_meanings(meanings, seen, hidden, dice)


def _ground_meanings(
    meanings: Iterable[PhraseMeaning], seen: Sequence[SeenObject], hidden: Sequence[SeenObject], dice: SeededDice
) -> list[PhraseGrounding]:
    """Each meaning in random words with those of `seen` it is true of; without what is unclear or only `hidden`."""
    said = []
    for meaning in meanings:
        verdicts = [meaning_holds(meaning, one.thing, one.middle) for one in (*seen, *hidden)]
        identities = frozenset(one.thing.identity for one, yes in zip(seen, verdicts, strict=False) if yes)
        if None not in verdicts and (identities or True not in verdicts):
            said.append(PhraseGrounding(say_freely(meaning, dice), identities))
    return said


def _meaning_families(meaning: PhraseMeaning) -> list[list[PhraseMeaning]]:
    """For each particular of a meaning about one kind: the meaning with every other value of it."""
    if len(meaning.kinds) != 1:
        return []
    (kind,) = meaning.kinds
    found = []
    if meaning.colour:
        found.append([replace(meaning, colour=colour) for colour in COLOURS[kind]])
    if meaning.sex:
        found.append([replace(meaning, sex=sex) for sex in ("man", "woman", "child")])
    if meaning.size:
        found.append([replace(meaning, size=size) for size in _SIZES])
    if meaning.attributes:
        found.append([replace(meaning, attributes=frozenset({one})) for one in sorted(_spoken_forms(kind))])
    return found


def say_freely(meaning: PhraseMeaning, dice: SeededDice) -> str:
    """One of the ways to say it."""
    return say_meaning(
        meaning,
        article=dice.weigh({"a": 0.45, "": 0.45, "the": 0.1}),
        plural=dice.chance(0.2),
        noun=0 if dice.chance(0.6) else dice.whole(0, 3),
        clause=0 if dice.chance(0.6) else dice.whole(0, 2),
        size=dice.whole(0, 1),
    )


def absent_meanings(
    everything: Sequence[SeenObject], dice: SeededDice, count: int, kinds: Sequence[str] = KINDS
) -> list[PhraseMeaning]:
    """Up to `count` different meanings that are false of everything: mostly the right kind with something wrong."""
    present = sorted({one.thing.kind for one in everything})
    found: list[PhraseMeaning] = []
    for _ in range(count * 12):
        if len(found) == count:
            break
        kind = dice.pick(present) if present and dice.chance(0.65) else dice.pick(kinds)
        meaning = _any_meaning(kind, dice)
        if meaning not in found and all(meaning_holds(meaning, one.thing, one.middle) is False for one in everything):
            found.append(meaning)
    return found


def absent_phrases(
    everything: Sequence[SeenObject], dice: SeededDice, count: int, kinds: Sequence[str] = KINDS
) -> list[str]:
    """Phrases in random words that are false of everything given."""
    return [say_freely(meaning, dice) for meaning in absent_meanings(everything, dice, count, kinds)]


def _any_meaning(kind: str, dice: SeededDice) -> PhraseMeaning:
    meaning = PhraseMeaning(frozenset({kind}))
    if kind == "person" and dice.chance(0.35):
        meaning = replace(meaning, sex=dice.pick(("man", "woman", "child")))
    colours, spoken = COLOURS.get(kind, ()), sorted(_spoken_forms(kind))
    what = dice.weigh({"kind": 0.2, "colour": 0.5, "attribute": 0.3})
    if what == "colour" and colours:
        meaning = replace(meaning, colour=dice.pick(colours))
    elif what == "attribute" and kind in SIZED_KINDS and dice.chance(0.5):
        meaning = replace(meaning, size=dice.pick(tuple(_SIZES)))
    elif what == "attribute" and spoken:
        meaning = replace(meaning, attributes=frozenset({dice.pick(spoken)}))
    return meaning
