"""Encodes images and captions once, ahead of a training run that then reads them.

python launch/precompute.py --config=configs/pretrain.py:320 --config.data.name=data/laion \\
                            --config.autoencoder=FOLDER --config.text_encoder=FOLDER
python launch/train.py      --config=configs/pretrain.py:320 ... \\
                            --config.cache=True --config.cache_dir=data/laion-encoded

Give the flags of the training run: the result says which encoders, tokens and image size made it,
and training refuses any other. All devices work. On several machines give each the same command: on
a TPU pod, in a SLURM or a Kubernetes job they share the work; elsewhere number them by --index=I
--count=N. Each writes files of its own. Killed at any time and started again, it goes on with the
first file that is missing. Without --config.data.name, training reads the result alone: the images
may be elsewhere.
"""

from absl import app, flags
from ml_collections import config_flags

from ldm_scaling.hosts import define_flags

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
OUTPUT = flags.DEFINE_string(
    "output", "", "Folder; default: --config.cache_dir, or NAME-encoded beside the source."
)
DTYPE = flags.DEFINE_enum(
    "dtype",
    "auto",
    ["auto", "float16", "float32"],
    "Of what is stored. auto: float16 if rounding to it, measured on 64 examples, is harmless.",
)
SHARD = flags.DEFINE_integer("shard_examples", 4096, "Examples of a file.", lower_bound=1)
INDEX = flags.DEFINE_integer("index", None, "Which of --count machines this is; default: JAX's.")
COUNT = flags.DEFINE_integer("count", None, "How many machines share the work; default: JAX's.")
define_flags()


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    if (INDEX.value is None) != (COUNT.value is None):
        raise app.UsageError("give both --index and --count, or neither")
    import jax

    from ldm_scaling.launching import running
    from ldm_scaling.train.precompute import precompute

    with running("precompute"):
        process = (INDEX.value, COUNT.value)
        if INDEX.value is None:
            process = (jax.process_index(), jax.process_count())
        precompute(
            CONFIG.value,
            OUTPUT.value,
            dtype=DTYPE.value,
            shard_examples=SHARD.value,
            process=process,
        )


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
