"""`python -m detectors.glamm.convert GLAMM CLIP OUT`: the hub's two folders into one, in bfloat16."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from detectors.detector import DetectorError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m detectors.glamm.convert", description=__doc__)
    parser.add_argument("glamm", type=Path, help="folder of an MBZUAI/GLaMM-* repository")
    parser.add_argument("clip", type=Path, help="folder of openai/clip-vit-large-patch14-336")
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} exists already: remove it or name another folder")
    from detectors.glamm import weights

    try:
        weights.convert(weights.open_folder(options.glamm, options.clip), options.out)
    except DetectorError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
