"""Compiles a run's programs for a TPU slice, without a TPU, and records memory, FLOPs and traffic.

    python launch/compile_report.py --config=configs/pods.py:v5p-320 --output=compile.jsonl
    python launch/compile_report.py --config=configs/pretrain.py:64 --topology=v5p:2x2x1 \\
        --config.batch_size=128 --config.model.remat=none --config.cache=True

What is compiled is the training loop's own step. Seconds and utilisation are the compiler's
estimates. Needs the package libtpu; the 866M model took 10 minutes and 18 GB on two cores. With
JAX_OPTIMIZATION_LEVEL=O1 in the environment the compiler takes about half its time for a program of
like memory (14 % less at c = 64) that is a third slower: to find out what fits. Its records say so.
"""

import os

from absl import app, flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Chip and shape of a slice, such as v5p:4x4x4; default: config.topology."
)
SLICES = flags.DEFINE_integer("slices", 1, "Slices, joined by the data-center network.", 1)
PROGRAM = flags.DEFINE_multi_enum(
    "program", ["train"], ["train", "evaluate", "sample"], "What to compile; may be repeated."
)
STEPS = flags.DEFINE_integer("steps", 50, "Of the sampler, for --program=sample.", 1)
IMAGES = flags.DEFINE_integer("images", None, "Drawn at a time, for sample; default 4 a chip.")
OUTPUT = flags.DEFINE_string("output", None, "Records; a line is added for each program.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    topology = TOPOLOGY.value or CONFIG.value.get("topology")
    if not topology:
        raise app.UsageError("name a slice: --topology=v5p:4x4x4, or a config of configs/pods.py")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from ldm_scaling.aot import topology_devices
    from ldm_scaling.evaluation.abstract import sampling_record
    from ldm_scaling.launching import explained
    from ldm_scaling.records import append_record
    from ldm_scaling.train.abstract import compile_record

    with explained("compile_report"):
        for program in dict.fromkeys(PROGRAM.value):
            where = {"topology": topology, "slices": SLICES.value}
            if program == "sample":
                images = IMAGES.value or 4 * len(topology_devices(**where))
                record = sampling_record(
                    CONFIG.value, **where, steps=STEPS.value, batch_size=images
                )
            else:
                record = compile_record(CONFIG.value, **where, program=program)
            for name, value in record.costs.items():
                print(f"{name:28s} {value:>24,.6g}")
            print(f"{'utilisation, estimated':28s} {record.metrics['utilisation'].value:>24.3f}")
            print(f"seconds of compiling: {record.provenance['seconds']}")
            if OUTPUT.value:
                append_record(OUTPUT.value, record)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    app.run(main)
