"""Trains what a config describes, or goes on where an earlier run stopped.

python launch/train.py --config=configs/autoencoder.py:micro --workdir=runs/vae
python launch/train.py --config=configs/pretrain.py:320 --workdir=DIR --config.batch_size=256

On several machines, the same command on each: on a TPU pod, in a SLURM or a Kubernetes job, the
processes find each other; elsewhere tell them apart by

python launch/train.py ... --coordinator=HOST:PORT --num_processes=4 --process_id=0     # to 3
"""

from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from ldm_scaling.hosts import define_flags

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, or gs://BUCKET/FOLDER; gone on with if it is one."
)
EXPLAIN = flags.DEFINE_bool(
    "explain_sharding", False, "Only say where every parameter would lie, and why."
)
define_flags()


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    from ldm_scaling.launching import running
    from ldm_scaling.train import train

    with running("train"):
        if EXPLAIN.value:
            from ldm_scaling.train.abstract import sharding_table

            return print(sharding_table(CONFIG.value, Path(WORKDIR.value)))
        train(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
