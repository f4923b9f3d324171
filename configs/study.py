"""A scaling study: `configs/study.py:micro` (minutes on two cores) or `:micro-full` (hours).

`:micro-training` measures the exports along the training of `launch/micro_family.sh`, all sampled
alike: quality against training compute.

A study is a grid of points for each sampler, over all models and seeds, and the protocol by which
every point is scored.
"""

from ml_collections import ConfigDict

from ldm_scaling.naming import check_name
from ldm_scaling.unet import MICRO_WIDTHS

STUDIES = ("micro", "micro-full", "micro-training")


def get_config(study: str = "micro") -> ConfigDict:
    check_name("study", study, STUDIES)
    config = ConfigDict()
    config.models = tuple(f"micro-{width}" for width in MICRO_WIDTHS)
    config.seeds = (0,)
    config.about = "Noto emoji, 64x64 pixels"  # for the report
    # Records to analyse together with this study's: files, or names of packaged ones. These are
    # the losses and scores along the training of the packaged family.
    config.beside = ("micro-training",)
    config.grids = {
        "ddim": {"steps": (1, 2, 3, 5, 10), "guidance": (1.0, 1.5, 2.5, 4.0, 6.0)},
        "ddpm": {"steps": (3, 5, 10), "guidance": (2.5,)},
        # Up to two steps of it are DDIM's: both are of first order there.
        "dpmpp_2m": {"steps": (3, 5, 10), "guidance": (2.5,)},
    }
    config.protocol = {
        "dataset": "noto_emoji",
        "captions": "train",
        "prompts": (),
        "reference": "train",
        "variants": False,
        "captions_seed": 0,
        "num_samples": 96,
        "feature_size": 96,
        "resamples": 200,
    }
    config.batch_size = 96
    config.mesh = {"replica": -1, "fsdp": 1, "tensor": 1}
    if study == "micro-full":
        config.seeds = (0, 1, 2)
        config.grids = {
            "ddim": {
                "steps": (1, 2, 3, 5, 10, 20),
                "guidance": (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0),
            },
            "ddpm": {"steps": (3, 5, 10, 20, 50), "guidance": (2.0, 3.0)},
            "dpmpp_2m": {"steps": (3, 5, 10, 20), "guidance": (2.0, 3.0)},
        }
        config.protocol.num_samples = 256
        config.batch_size = 128
    if study == "micro-training":
        config.models = ("runs/micro/micro-*/export/step_*",)
        config.beside = ()
        config.grids = {"ddim": {"steps": (10,), "guidance": (2.5,)}}
    return config
