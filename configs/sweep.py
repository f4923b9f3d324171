"""The points of a study for an array of jobs: `configs/sweep.py` or `configs/sweep.py:micro`.

The same grid as `configs/study.py`, of which it is the long form by default: one job a point.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(study: str = "micro-full") -> ConfigDict:
    # A config file is run by path, not imported: so is its neighbour.
    return runpy.run_path(str(Path(__file__).with_name("study.py")))["get_config"](study)
