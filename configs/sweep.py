"""The points of a study for an array of jobs: `configs/sweep.py`, `:micro`, or `:paper`.

`paper` is the study of arXiv:2404.01367: 11 widths, three samplers, eight guidance rates, 30,000
captions of COCO's 2014 validation set. The paper names the steps 4, 20, 50 and 250 and that
DPM-Solver++ is not made for more than 20; those between are chosen here. Ask for the bill first:

    python launch/sweep.py --config=configs/sweep.py:paper --bill

Any other name is a study of `configs/study.py`, "micro-full" by default: one job a point.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from ldm_scaling.unet import WIDTHS

RATES = (1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)  # section 3.3.1


def get_config(study: str = "micro-full") -> ConfigDict:
    if study == "paper":
        return _paper()
    # A config file is run by path, not imported: so is its neighbour.
    return runpy.run_path(str(Path(__file__).with_name("study.py")))["get_config"](study)


def _paper() -> ConfigDict:
    config = ConfigDict()
    config.models = tuple(f"runs/c{width}/export/final" for width in WIDTHS)
    config.widths = WIDTHS  # of the models, for the bill of what is not trained yet
    config.seeds = (0,)
    config.about = "COCO 2014, 30,000 captions"
    config.beside = ()
    config.grids = {
        "ddim": {"steps": (2, 4, 6, 8, 10, 15, 20, 30, 50, 100, 250), "guidance": RATES},
        "ddpm": {"steps": (4, 10, 20, 50), "guidance": RATES},
        "dpmpp_2m": {"steps": (2, 4, 6, 8, 10, 15, 20), "guidance": RATES},
    }
    config.protocol = {
        "preset": "paper",
        "captions": "coco/annotations/captions_val2014.json",
        "reference": "coco/val2014",  # or statistics: an .npz file
        "inception": "pt_inception-2015-12-05-6726825d.pth",
        "clip": "clip-vit-large-patch14",
        "num_samples": 30_000,
        "published": True,
        "resamples": 0,
        "keep_images": False,
    }
    config.batch_size = 64
    config.mesh = {"replica": -1, "fsdp": 1, "tensor": 1}
    return config
