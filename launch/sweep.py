"""Runs a study point by point, so that an array of jobs can share it.

    python launch/sweep.py --config=configs/sweep.py --workdir=DIR --list
    python launch/sweep.py --config=configs/sweep.py --workdir=DIR --index=17

Every job writes its own records-INDEX.jsonl; launch/study.py or launch/analyze.py read them all.
"""

from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study, shared by all jobs.")
LIST = flags.DEFINE_bool("list", False, "Print one line a point: index, hash, state, setting.")
INDEX = flags.DEFINE_integer("index", None, "Measure this point only.", lower_bound=0)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    if LIST.value == (INDEX.value is not None):
        raise app.UsageError("give either --list or --index=I")
    from ldm_scaling.evaluation import listing, run
    from ldm_scaling.launching import explained
    from ldm_scaling.train.workdir import STUDY_RESUMABLE, claim_workdir

    workdir, config = Path(WORKDIR.value), CONFIG.value
    with explained("sweep"):
        if LIST.value:
            print("\n".join(listing(config, workdir)))
            return
        claim_workdir(workdir, config, results="records*.jsonl", resumable=STUDY_RESUMABLE)
        run(config, workdir, INDEX.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
