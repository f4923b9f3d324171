"""Runs a study point by point, so that an array of jobs can share it; or tells what it will cost.

    python launch/sweep.py --config=configs/sweep.py:paper --bill [--budget=2000]
    python launch/sweep.py --config=configs/sweep.py --workdir=DIR --list
    python launch/sweep.py --config=configs/sweep.py --workdir=DIR --index=0-17,40

--bill needs neither models nor data. Every job writes its own records-INDEX.jsonl, goes on where it
was stopped, and compiles once for each width among its points; launch/study.py or launch/analyze.py
read all records. As an array of SLURM, each task the points of its line in jobs.txt:

    sbatch --array=1-11 --wrap='python launch/sweep.py --config=configs/sweep.py:paper \\
        --workdir=DIR --index=$(sed -n ${SLURM_ARRAY_TASK_ID}p jobs.txt)'
"""

import os
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study, shared by all jobs.")
LIST = flags.DEFINE_bool("list", False, "Print one line a point: index, hash, state, setting.")
INDEX = flags.DEFINE_string("index", None, "Measure these points only, such as 17 or 0-17,40.")
BILL = flags.DEFINE_bool("bill", False, "Print the TPU-hours of the study, estimated, and end.")
BUDGET = flags.DEFINE_float(
    "budget", None, "TPU-hours; with --bill: which points they pay, the cheapest first.", 0.0
)
CHIP = flags.DEFINE_string("chip", "v5p", "Of the bill: v5p, or another with compile records.")
JOBS = flags.DEFINE_string("jobs", None, "With --bill: a file for the points, one width a line.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    if LIST.value + BILL.value + (INDEX.value is not None) != 1:
        raise app.UsageError("give one of --bill, --list and --index=I")
    if not BILL.value and WORKDIR.value is None:
        raise app.UsageError("--list and --index need --workdir")
    from ldm_scaling.evaluation import listing, run
    from ldm_scaling.evaluation.bill import from_ranges
    from ldm_scaling.launching import explained
    from ldm_scaling.train.workdir import STUDY_RESUMABLE, claim_workdir

    config = CONFIG.value
    with explained("sweep"):
        if BILL.value:
            os.environ.setdefault("JAX_PLATFORMS", "cpu")  # FLOPs are counted, nothing runs
            print(_bill(config))
            return
        workdir = Path(WORKDIR.value)
        if LIST.value:
            print("\n".join(listing(config, workdir)))
            return
        points = from_ranges(INDEX.value)
        claim_workdir(workdir, config, results="records*.jsonl", resumable=STUDY_RESUMABLE)
        run(config, workdir, points)


def _bill(config) -> str:
    from ldm_scaling.evaluation.bill import affordable, as_ranges, bill, bill_table

    items = bill(config, CHIP.value)
    kept = items if BUDGET.value is None else affordable(items, BUDGET.value)
    jobs = [
        as_ranges(item.index for item in kept if item.width == width)
        for width in dict.fromkeys(item.width for item in kept)
    ]
    if JOBS.value:
        Path(JOBS.value).write_text("".join(f"{job}\n" for job in jobs))
    hours, images = sum(item.hours for item in kept), config.protocol.num_samples
    return "\n".join(
        [
            f"Hours of one {CHIP.value} chip, {images:,} images a point; an estimate:",
            bill_table(kept, CHIP.value),
            f"{len(kept)} of {len(items)} points, {hours:,.0f} TPU-hours; one job a width:",
            *(f"  --index={job}" for job in jobs),
        ]
    )


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main)
