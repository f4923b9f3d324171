"""The points of a study for an array of jobs: `configs/sweep.py` or `configs/sweep.py:micro`.

The same grid as `configs/study.py`, of which it is the long form by default: one job a point.
"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict


def get_config(study: str = "micro-full") -> ConfigDict:
    # A config file is run by path, not imported: its neighbour has to be found the same way.
    spec = importlib.util.spec_from_file_location("study", Path(__file__).with_name("study.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(study)
