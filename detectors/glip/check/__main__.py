"""Entry point of `python -m detectors.glip.check`."""

from __future__ import annotations

from detectors.glip.check.command import main

if __name__ == "__main__":
    raise SystemExit(main())
