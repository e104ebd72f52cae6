"""groundstream's application: sources, batching, rules and the pipeline that connects detector, tracker and sinks.

`watch` is the way in:

    async for event in streamer.watch("street.mp4", ["a red car"]):
        print(event.time, event.type, event.subject)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from groundstream import __version__

if TYPE_CHECKING:
    from streamer.api import watch

__all__ = ["__version__", "watch"]


def __getattr__(name: str) -> Any:
    # Imported when used: it loads the models' libraries, which `import streamer` must not.
    if name == "watch":
        from streamer.api import watch

        return watch
    raise AttributeError(f"module 'streamer' has no attribute {name!r}")
