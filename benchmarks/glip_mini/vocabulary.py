"""glip-mini's own WordPiece vocabulary: the street's words whole, anything else letter by letter."""

from __future__ import annotations

import re
import string

from streamer.street import words

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def street_words() -> list[str]:
    """Every word that a phrase of the everyday street may contain."""
    nouns = [noun for noun in words.NOUNS if noun.meaning.kinds <= set(words.KINDS)]
    texts = [text for noun in nouns for text in (noun.singular, noun.plural)]
    texts += [colour for colours in words.COLOURS.values() for colour in colours]
    texts += [form for forms in words.ATTRIBUTES.values() for some in forms.values() for form in some]
    texts += ["parked double-decker large big small little in dressed wearing on the left right a an gray"]
    return sorted({word for text in texts for word in re.findall("[a-z]+", text)})


def vocabulary() -> list[str]:
    """One piece a line of `vocab.txt`."""
    characters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    pieces = [*SPECIAL, *characters, *(f"##{character}" for character in string.ascii_lowercase + string.digits)]
    return [*pieces, *(word for word in street_words() if word not in pieces)]
