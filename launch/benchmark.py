"""Times the library on this machine, beside its peers in the same run where they are installed.

python launch/benchmark.py                          everything, about half an hour on two cores
python launch/benchmark.py --what=evaluation-64 --output=benchmark.json
python launch/benchmark.py --what=input --images=FOLDER

Each side runs in a process of its own, with the same weights. A row is the median of several calls
after one that compiles; where compiling counts, the first call. Ratios are what to compare, seconds
are this machine's; the last column is the part of the fastest matrix product's FLOP/s that was
reached. Give it a machine that does nothing else. Peers: pip install -e ".[peers]", and
scikit-image for its photographs.
"""

import dataclasses
import json
from pathlib import Path

from absl import app, flags
from benchmarks import reading
from benchmarks.all import CASES
from benchmarks.timing import compare

KINDS = [*CASES, "input"]
WHAT = flags.DEFINE_multi_enum(
    "what",
    KINDS,
    KINDS,
    "Attention kernels in one evaluation of c = 64; evaluations of three widths, guided sampling "
    "and a training step of a micro model against diffusers; FID's features and CLIP's cosines "
    "against pytorch-fid and transformers; images from files to batches against Pillow's decoder "
    "alone and tf.data. May be repeated.",
)
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed repetitions.", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", None, "A JSON file for the rows.")
IMAGES = flags.DEFINE_string("images", "", "Folder of JPEGs for --what=input; default: made ones.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    rows = []
    for name in dict.fromkeys(WHAT.value):
        if name == "input":
            found = list(reading.measure(REPEATS.value, IMAGES.value))
        else:
            found = list(compare(name, CASES[name], REPEATS.value))
        for row in found:
            times = {r.way: r.seconds for r in found if r.what == row.what}
            ratio = ""
            if row.baseline in times and row.way != row.baseline:
                ratio = f"{times[row.baseline] / row.seconds:.2f} x as fast as {row.baseline}"
            share = "" if row.share is None else f"{row.share:4.0%} of peak"
            print(f"{row.what:54s} {row.way:14s} {shown(row)}  {share:12s}  {ratio}", flush=True)
        rows += found
        if OUTPUT.value:  # after each, so that a run that is stopped leaves what it has
            content = [dataclasses.asdict(row) for row in rows]
            Path(OUTPUT.value).write_text(json.dumps(content, indent=2) + "\n")


def shown(row) -> str:
    """Seconds, or images per second of one core."""
    if row.per_image:
        return f"{1 / row.seconds:8.1f} images/s a core"
    return f"{row.seconds:8.3f} s"


if __name__ == "__main__":
    app.run(main)
