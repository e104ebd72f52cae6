"""Finder of the things that an English sentence names: "two people carry a ladder" -> "two people", "a ladder".

The rule works on closed word classes, a list of verbs of action and the agreement of verb and subject ("a man walks",
"two men walk"), which is what captions and queries consist of; it needs no trained tagger. Determiners and numbers
belong to a phrase, as in Flickr30k Entities (arXiv:1505.04870).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from detectors.detector import Detector, Prompt, PromptError

Span = tuple[int, int]  # first character, one past the last


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words of a sentence that name a thing, as they stand there, and each place where they stand."""

    text: str
    spans: tuple[Span, ...]


@runtime_checkable
class TextGrounder(Protocol):
    """A detector that reads a whole sentence and grounds phrases of it."""

    def prepare_text(self, text: str, phrases: Sequence[str], spans: Sequence[Sequence[Span]] | None = None) -> Any: ...


class _Word(NamedTuple):
    text: str  # lower case
    start: int
    end: int

    @property
    def is_mark(self) -> bool:
        return not self.text[0].isalnum()


_WORD = re.compile(r"\w+(?:[-'’.]\w+)*|[^\w\s]")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SINGULAR = _words("a an one each every another this that")
_DETERMINERS = _SINGULAR | _words(
    "the these those some any all both several many few no two three four five six seven eight nine ten eleven twelve "
    "dozen hundreds my your his her its our their"
)
_ALONE = _words("someone somebody anyone anybody everyone everybody something anything everything")
"""Pronouns that name a thing by themselves."""
_PREPOSITIONS = _words(
    "about above across after against along alongside amid among amongst around as at atop before behind below "
    "beneath beside besides between beyond by down during for from in inside into near of off on onto opposite out "
    "outside over past per round since than through throughout till to toward towards under underneath until up upon "
    "via with within without"
)
_SKIPPED = _PREPOSITIONS | _words(
    "and or but nor so while when where whereas because if then who whom whose which what how i you he she it we they "
    "me him us them himself herself itself themselves each-other there here is are was were be been being am has have "
    "had having do does did doing can could will would shall should may might must not isn't aren't doesn't don't "
    "away apart together alone again back forward forwards backward backwards ahead aside upside also just only still "
    "very too quite almost nearby next close far left-hand right-hand fast slowly outdoors indoors upstairs "
    "downstairs home overhead underwater sideways uphill downhill"
)
_JOINTS = tuple(
    tuple(words.split())
    for words in (
        "in front of", "on top of", "next to", "close to", "in the middle of", "in the center of",
        "in the centre of", "in the background", "in the foreground", "in the front of", "at the back of",
        "at the front of", "at the top of", "at the bottom of", "at the end of", "at the edge of", "on the side of",
        "by the side of", "on the edge of", "on the left of", "on the right of", "to the left of",
        "to the right of", "on the left", "on the right", "to the left", "to the right", "on each side of",
        "on both sides of", "in line", "in a line", "in a row", "in a circle", "on the back of", "at night",
        "in the distance", "in the air", "at least", "at most", "more than", "less than", "instead of",
        "because of", "each other", "one another", "side by side", "left of", "right of", "front of",
        "at the same time", "in use", "upside down", "left behind", "on foot", "out of", "full of", "top of"
    )
)  # fmt: skip
"""Groups of words that say where or how; the nouns in them name no things."""

_VERBS = _words(
    "adjust aim approach arrange arrive ask assemble attach attack balance bark bathe be beat become begin bend bite "
    "block bounce break bring brush build bump burn bury buy call carry catch celebrate change charge chase check "
    "chew clap clean clear climb close collapse collect collide come connect contain continue cook cover crash crawl "
    "cross crouch cry cut dance deliver dig disappear dive drag draw drift drink drip drive drop dump eat embrace "
    "empty enter examine exit explode extinguish fall feed fight fill fix flee flip float flow fly follow forget "
    "gallop gather gaze get give glide go grab graze greet grill grind grow guard guide handle hang hit hold hop hug "
    "hurry inspect join jog juggle jump kick kiss kneel knock land laugh launch lay lead lean leap leave lick lie "
    "lift listen load lock look lower make march mount mow move obstruct offer open operate overtake pack park pass "
    "pat pay pedal peek perform pick place play point pose pour practice prepare press protest pull push put race "
    "raise reach read receive reflect relax remove repair reverse rest ride rise roast roll row run rush sail salute "
    "saw scream scrub see sell serve set shake share shine shoot shop shout show sing sip sit skate skateboard ski "
    "skip slam sled sleep slice slide slip smash smile smoke sniff snowboard speak speed spill spin splash spray "
    "spread sprint stack stand stare start stay steal steer step stir stop stretch strike stroll stumble surf "
    "surround surrender sweep swim swing swerve take talk taste teach tend throw tie tip topple toss touch tow travel "
    "trip try turn type unload unlock use vacuum wade wait walk wander wash watch wave wear weld whisper win wipe "
    "work wrap wrestle write yawn yell"
)
_IRREGULAR = _words(
    "ate became began bent bit blew bought broke brought built came caught chose crept dealt drank drew drove fed "
    "fell felt fled flew flung forgot fought gave given got grew held hid hung kept knelt laid led leapt left lent "
    "lit lost made met paid ran rang fallen stolen broken hidden ridden driven rode rose said sang sat saw seen sent "
    "shook shone shot sank slept slid sold spoke spent spun stole stood struck stuck swam swept swung taken threw "
    "thrown told took tore went woke won wore worn wrote written gone done seated dressed known"
)
"""Past forms that name no thing; those that read like the base form (cut, hit, put) are in the list of verbs."""
_AMOUNTS = _words(
    "group couple pair set piece bunch crowd herd flock pack team line row pile stack heap glass cup bottle bowl "
    "plate bag box basket bucket lot number handful series cloud stream swarm column"
)
"""Nouns that with "of" say how much of a thing: "a group of people" is one phrase."""
_CONTAINERS = _words("trash garbage rubbish recycling watering soda beer tin oil paint jerry spray")
"""What stands before "can", the noun."""
_VERBAL_PREPOSITIONS = _words("by without while when before after from for")
"""Words before which a form in -ing is a verb ("without wearing a helmet"), not an adjective ("with flashing lights").
"""
_DOUBLE_OBJECT = _words(
    "give gives giving gave hand hands handing show shows showing showed throw throws threw offer offers offered "
    "offering bring brings brought sell sells feed feeds fed"
)
_PLURALS = _words(
    "people men women children police geese mice sheep fish cattle feet teeth firemen policemen firefighters workmen "
    "persons bikers"
)
_NOT_PLURAL = ("ss", "us", "is")  # glass, bus, tennis
_ING_NOUNS = _words(
    "building ceiling clothing painting string ring king thing morning evening crossing railing wing swing parking "
    "wedding spring sling duckling sibling awning scaffolding lightning opening icing pudding stocking earring "
    "pedestrian-crossing dressing drawing topping piping decking bedding fencing offspring"
)
_ED_NOUNS = _words("bed shed seed weed sled red steed reed speed hundred tweed breed feed flatbed moped")
_GERUND_NOUNS = _words(
    "stick lot cart pool shoes shoe machine room table rod bag board boat trunks suit glasses chair bike car jacket "
    "vest truck vehicle area place space spot sign equipment gear light lights pole gloves robe gown dress pants pan "
    "pot paper knife mat goggles desk tower crane platform"
)
"""What words in -ing stand before in compounds: walking stick, parking lot, shopping cart."""
_COLOURS = _words("red green blue yellow black white grey gray brown orange purple pink beige")
_ADJECTIVES = _COLOURS | _words(
    "silver golden dark light bright pale small big large little huge tiny tall short long wide narrow old young new "
    "empty full open closed wet dry dirty clean broken wooden metal plastic glass fast slow high low hard soft heavy "
    "bald striped hooded naked"
)


def find_phrases(sentence: str) -> tuple[Phrase, ...]:
    """The things that a sentence names, in order; a phrase that stands there twice has two spans."""
    found: dict[str, list[Span]] = {}
    texts: dict[str, str] = {}
    for start, end in _phrase_spans(_split_words(sentence)):
        text = sentence[start:end]
        key = " ".join(text.lower().split())
        texts.setdefault(key, text)
        found.setdefault(key, []).append((start, end))
    return tuple(Phrase(texts[key], tuple(spans)) for key, spans in found.items())


def locate_phrases(sentence: str, phrases: Sequence[str]) -> tuple[Phrase, ...]:
    """Given phrases with each place where they stand in the sentence as whole words.

    Raises `PromptError` for a phrase that is not there.
    """
    located = []
    for phrase in phrases:
        spans = tuple(
            match.span() for match in re.finditer(rf"(?<!\w){re.escape(phrase.lower())}(?!\w)", sentence.lower())
        )
        if not spans:
            raise PromptError(
                f"the phrase {phrase!r} is not in the text {sentence!r}: give phrases as they stand there"
            )
        located.append(Phrase(phrase, spans))
    return tuple(located)


def bare_words(phrase: str) -> str:
    """A phrase without its determiners and numbers, in lower case: "Two young people" -> "young people"."""
    words = phrase.lower().split()
    while len(words) > 1 and (words[0] in _DETERMINERS or words[0].isdecimal()):
        words = words[1:]
    return " ".join(words)


def with_article(phrase: str) -> str:
    """A phrase with an article where it needs one: "red car" -> "a red car", "two people" as it is."""
    first, last = (phrase.lower().split() or [""])[0], (phrase.lower().split() or [""])[-1]
    if first in _DETERMINERS | _ALONE or first.isdecimal() or _is_plural(last):
        return phrase
    return f"{'an' if first[:1] in 'aeiou' else 'a'} {phrase}"


def place_phrases(phrases: Sequence[str], spans: Sequence[Sequence[Span]]) -> tuple[Phrase, ...]:
    """Phrases with their places, one list of spans for each; equal words in different places are phrases of their own.

    Raises `PromptError` when there is none, or one is empty.
    """
    placed = tuple(
        Phrase(" ".join(phrase.split()), tuple(places)) for phrase, places in zip(phrases, spans, strict=True)
    )
    if not placed or not all(phrase.text and phrase.spans for phrase in placed):
        raise PromptError(f"no phrase, or an empty one, is given with its places: {list(phrases)}")
    return placed


def require_phrases(sentence: str) -> tuple[Phrase, ...]:
    """The things that a sentence names. Raises `PromptError` for one that names nothing."""
    if not (named := find_phrases(sentence)):
        raise PromptError(
            f"the sentence {sentence!r} names nothing that can be detected: write what is to be seen, such as "
            "'two people carry a ladder past a red car'"
        )
    return named


def prepare_sentence(detector: Detector, sentence: str, phrases: Sequence[Phrase]) -> Prompt:
    """A prompt for phrases of a sentence; `class_id` is an index into the phrases.

    Detectors that read sentences ground each phrase in its place; for the others each phrase is a query of its own.
    """
    texts = [phrase.text for phrase in phrases]
    if isinstance(detector, TextGrounder):
        prompt: Prompt = detector.prepare_text(sentence, texts, [phrase.spans for phrase in phrases])
        return prompt
    return detector.prepare(texts)


def _split_words(sentence: str) -> list[_Word]:
    """Words and marks; a possessive ("the man's hat") keeps its ending."""
    return [_Word(match[0].lower(), *match.span()) for match in _WORD.finditer(sentence)]


def _phrase_spans(words: Sequence[_Word]) -> Iterator[Span]:
    place = 0
    while place < len(words):
        skipped = _length_of_joint(words, place)
        if skipped or _is_boundary(words, place):
            place += skipped or 1
            continue
        end = place + 1
        while end < len(words) and not _is_boundary(words, end) and not _length_of_joint(words, end):
            if (
                words[end].text in _DETERMINERS
                and words[end - 1].text != "of"
                and not _is_determiner_run(words[place:end])
            ):
                break
            end += 1
        yield from _noun_runs(words, place, end)
        place = end


def _noun_runs(words: Sequence[_Word], start: int, end: int) -> Iterator[Span]:
    """The phrases between two boundaries: words with its verbs, taken out, part them."""
    first = start
    while first < end and words[first].text in _DETERMINERS:
        first += 1
    run_start, run = start, first
    for place in range(first, end):
        if _is_verb(words, run_start, run, place, end):
            yield from _as_span(words, run_start, place)
            run_start = run = place + 1
    yield from _as_span(words, run_start, end)


def _as_span(words: Sequence[_Word], start: int, end: int) -> Iterator[Span]:
    """The words as one span, unless they are determiners, adverbs or colours alone."""
    while end > start and (words[end - 1].text.endswith("ly") and len(words[end - 1].text) > 5):
        end -= 1
    run = words[start:end]
    is_colour = start > 0 and all(word.text in _COLOURS for word in run)  # "a man in green"
    if end > start and not is_colour and not _is_determiner_run(run):
        yield words[start].start, words[end - 1].end


def _is_verb(words: Sequence[_Word], start: int, first: int, place: int, end: int) -> bool:
    """Whether the word at `place` is a verb in the run that starts at `start`, `first` behind its determiners."""
    word = words[place].text
    before = words[place - 1].text if place > first else ""
    described = _describes(before) and (place - 2 < first or words[place - 2].text in _ADJECTIVES)
    after = words[place + 1].text if place + 1 < end else ""
    has_determiner = first > start
    object_follows = place + 1 == end and end < len(words) and words[end].text in _DETERMINERS
    if word in _ALONE:
        return False
    if word.endswith("ing") and len(word) > 4 and word not in _ING_NOUNS:
        if after in _GERUND_NOUNS and not before:
            return False
        if not before:
            return not (after and (has_determiner or _is_adjectival(words, start)))
        return not (described and after)
    if word in _IRREGULAR:
        return bool(before) or not after or _follows_verb_joint(words, start)
    if word.endswith("ed") and len(word) > 3 and word not in _ED_NOUNS and "-" not in word:
        if not before:
            return not after
        return not (described and after)
    base = _base_form(word)
    if base is None:
        # "people hoist a sofa": what stands between a noun and a determiner is a verb that the list lacks.
        return object_follows and bool(before) and not described and not _gives(words, start)
    if not before:
        if has_determiner:
            return False
        return object_follows or _follows_verb_joint(words, start) or (base == word and start == 0 and not after)
    if described and not object_follows:
        return False
    if word != base:  # "walks": of one subject
        return not _is_plural(before)
    several = start > 0 and words[start - 1].text == "and" and has_determiner  # "a man and a dog walk"
    return _is_plural(before) or object_follows or before in _ALONE or (several and word != "stop")


def _follows_verb_joint(words: Sequence[_Word], start: int) -> bool:
    """Whether the words before a run ask for a verb: "to", "and", "who", "can", an adverb, a pronoun."""
    if start == 0:
        return False
    return words[start - 1].text in {
        "to", "and", "then", "who", "which", "that", "he", "she", "it", "they", "can", "will", "would", "should", "may",
        "might", "must", "but", "or",
    }  # fmt: skip


def _describes(word: str) -> bool:
    """Whether a word is an adjective or reads like one: red, flashing, parked."""
    return word in _ADJECTIVES or (
        (word.endswith("ing") and word not in _ING_NOUNS) or (word.endswith("ed") and word not in _ED_NOUNS)
    )


def _is_adjectival(words: Sequence[_Word], start: int) -> bool:
    """Whether a form in -ing that begins a run describes a thing, for it stands behind a preposition."""
    return start > 0 and words[start - 1].text in _PREPOSITIONS - _VERBAL_PREPOSITIONS


def _gives(words: Sequence[_Word], start: int) -> bool:
    return start > 0 and words[start - 1].text in _DOUBLE_OBJECT


def _base_form(word: str) -> str | None:
    """The base form of a verb of the list: "carries" -> "carry"; None for other words."""
    candidates = [word]
    if word.endswith("s"):
        candidates.append(word[:-1])
    if word.endswith("es"):
        candidates.append(word[:-2])
    if word.endswith("ies"):
        candidates.append(word[:-3] + "y")
    return next((candidate for candidate in candidates if candidate in _VERBS), None)


def _is_plural(word: str) -> bool:
    return word in _PLURALS or (word.endswith("s") and not word.endswith(_NOT_PLURAL))


def _is_boundary(words: Sequence[_Word], place: int) -> bool:
    word, before = words[place], words[place - 1].text if place else ""
    if word.text == "of":
        return before not in _AMOUNTS
    if word.text == "can" and before in _CONTAINERS:
        return False
    return word.is_mark or word.text in _SKIPPED


def _is_determiner_run(words: Sequence[_Word]) -> bool:
    return all(word.text in _DETERMINERS or word.text.isdecimal() for word in words)


def _length_of_joint(words: Sequence[_Word], place: int) -> int:
    """How many words from `place` on are a group that says where or how."""
    return max(
        (len(joint) for joint in _JOINTS if tuple(word.text for word in words[place : place + len(joint)]) == joint),
        default=0,
    )
