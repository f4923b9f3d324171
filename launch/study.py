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
    from ldm_scaling.train.workdir import claim_workdir

    workdir = Path(WORKDIR.value)
    claim_workdir(workdir, CONFIG.value)
    records = run(CONFIG.value, workdir)
    report = write_report(
        records,
        workdir / "report",
        samples_dir=workdir / "samples",
        context={"commands": [shlex.join(["python", *sys.argv])]},
    )
    print(f"Report: {report}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
