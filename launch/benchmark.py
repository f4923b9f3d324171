"""Times the library on this machine, beside its peers in the same run where they are installed.

python launch/benchmark.py                          everything, about six minutes on two cores
python launch/benchmark.py --what=attention --output=benchmark.json
python launch/benchmark.py --what=input --images=FOLDER

Each row is the best of several repetitions after one that compiles; ratios are what to compare,
seconds are this machine's. Give it a machine that does nothing else. Peers: pip install torch
diffusers (networks), scikit-image (for its photographs).
"""

import dataclasses
import json
from pathlib import Path

from absl import app, flags

KINDS = ["attention", "forward", "train", "sample", "input"]
WHAT = flags.DEFINE_multi_enum(
    "what",
    KINDS,
    KINDS,
    "Attention kernels in one evaluation of c = 64; that evaluation, a training step and sampling "
    "of a micro model against diffusers; images from files to batches against Pillow's decoder "
    "alone and tf.data. May be repeated.",
)
REPEATS = flags.DEFINE_integer("repeats", 4, "Timed repetitions.", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", None, "A JSON file for the rows.")
IMAGES = flags.DEFINE_string("images", "", "Folder of JPEGs for --what=input; default: made ones.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    from benchmarks import networks, reading
    from benchmarks.timing import Row

    rows: list[Row] = []
    for name in dict.fromkeys(WHAT.value):
        if name == "input":
            found = list(reading.measure(REPEATS.value, IMAGES.value))
        else:
            found = list(getattr(networks, name)(REPEATS.value))
        for row in found:
            times = {r.way: r.seconds for r in found if r.what == row.what}
            ratio = ""
            if row.baseline in times and row.way != row.baseline:
                ratio = f"{times[row.baseline] / row.seconds:.2f} x as fast as {row.baseline}"
            print(f"{row.what:58s} {row.way:16s} {shown(row)}  {ratio}", flush=True)
        rows += found
    if OUTPUT.value:
        content = [dataclasses.asdict(row) for row in rows]
        Path(OUTPUT.value).write_text(json.dumps(content, indent=2) + "\n")


def shown(row) -> str:
    """Seconds, or images per second of one core."""
    if row.per_image:
        return f"{1 / row.seconds:8.1f} images/s a core"
    return f"{row.seconds:8.3f} s"


if __name__ == "__main__":
    app.run(main)
