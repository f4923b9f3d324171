"""Measures every point of a study that has no record yet, and writes the report.

    python launch/study.py --config=configs/study.py:micro --workdir=runs/study

Stop it at any point and start it again: no finished point is repeated.
"""

import shlex
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study; gone on with if it is one.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    from ldm_scaling.analysis.report import write_report
    from ldm_scaling.evaluation import run
    from ldm_scaling.launching import explained
    from ldm_scaling.records import find_records, read_records
    from ldm_scaling.train.workdir import STUDY_RESUMABLE, claim_workdir

    workdir, config = Path(WORKDIR.value), CONFIG.value
    context = {"dataset": config.about, "commands": [shlex.join(["python", *sys.argv])]}
    with explained("study"):
        beside = read_records([find_records(name) for name in config.beside])
        claim_workdir(workdir, config, results="records*.jsonl", resumable=STUDY_RESUMABLE)
        records = run(config, workdir)
        report = write_report(
            [*beside, *records],
            workdir / "report",
            samples_dir=workdir / "samples",
            context=context,
        )
    print(f"Report: {report}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
