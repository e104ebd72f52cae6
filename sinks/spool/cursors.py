"""Which stored cursor belongs to which sink, also after a sink's address was corrected or a setting changed.

A sink is recognised by its name: the one given with `name=`, else its address without secrets. A sink without a cursor
of that name takes over the cursor at its position among the sinks of its scheme, or the only one left of its scheme.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_SECURE = {"https": "http", "kafkas": "kafka", "mqtts": "mqtt", "rediss": "redis"}


def match_cursors(sinks: Sequence[str], stored: Sequence[str]) -> dict[str, str]:
    """(sink, stored cursor) for every sink that has one; both in the order of the configuration.

    A name that is no address (`name=`) may take over the only cursor left, of any scheme.
    """
    known = set(stored)
    matched = {sink: sink for sink in sinks if sink in known}
    for sink in sinks:
        if sink in matched:
            continue
        family = [name for name in sinks if _family(name) == _family(sink)]
        relatives = [name for name in stored if _family(name) == _family(sink)]
        free = [name for name in relatives if name not in matched.values()]
        position = family.index(sink)
        if position < len(relatives) and relatives[position] in free:
            matched[sink] = relatives[position]
        elif len(free) == 1 and sum(name not in matched for name in family) == 1:
            matched[sink] = free[0]
    unmatched = [sink for sink in sinks if sink not in matched]
    free = [name for name in stored if name not in matched.values()]
    if len(unmatched) == len(free) == 1 and not (_family(unmatched[0]) and _family(free[0])):
        matched[unmatched[0]] = free[0]
    return matched


def adopted_cursor(sink: str, left: Sequence[str]) -> str | None:
    """The cursor that a sink takes over which is added while others run: its own, else the only one left of its scheme
    (or of all, where one of the two has no scheme)."""
    if sink in left:
        return sink
    relatives = [name for name in left if _family(name) == _family(sink)]
    if len(relatives) == 1:
        return relatives[0]
    return left[0] if len(left) == 1 and not (_family(sink) and _family(left[0])) else None


def waiting_events(cursors: Mapping[str, int], names: Iterable[str], newest: int) -> dict[str, int]:
    """How many events wait behind each of the named cursors, none left out that has any."""
    return {name: newest - cursors[name] for name in names if cursors[name] < newest}


def _family(name: str) -> str:
    """The scheme of an address, the same for its secure form; empty for a name that was given."""
    match = _SCHEME.match(name)
    scheme = match[1].lower() if match else ""
    return _SECURE.get(scheme, scheme)
