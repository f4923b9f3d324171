"""Draws one image for each caption of a file into a folder, to be scored or looked at.

    python launch/generate.py --model=micro-48 --captions=captions.txt --output=drawn
    python launch/generate.py --model=FOLDER --captions=annotations/captions_val2014.json \\
        --preset=mlperf --output=drawn --index=3 --of=8

Stop it at any point and start it again: no finished image is drawn twice. Jobs of an array
(--index, --of) share a folder. The result depends neither on the batch size nor on the devices.
Where the weights are too large for one device: --mesh.replica=1 --mesh.fsdp=-1 spreads them.
"""

from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

MODEL = flags.DEFINE_string(
    "model", "micro-48", "A packaged model, a folder in the diffusers layout, or OWNER/NAME (Hub)."
)
CAPTIONS = flags.DEFINE_string(
    "captions", None, "COCO annotations (.json), .jsonl, .tsv, .csv, or text, one caption a line."
)
CHOICE = flags.DEFINE_string(
    "choice", "all", "all; first: one caption an image; mlperf: shuffled as MLPerf does."
)
PRESET = flags.DEFINE_string(
    "preset", None, "mlperf, mosaicml or paper: which captions of COCO, instead of --choice."
)
COUNT = flags.DEFINE_integer("count", None, "At most so many images.", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", None, "Folder of the images; gone on with if it is one.")
SAMPLER = flags.DEFINE_string("sampler", "ddim", "ddim, ddpm or dpmpp_2m.")
STEPS = flags.DEFINE_integer("steps", 50, "Sampling steps, 1 to 1000.")
GUIDANCE = flags.DEFINE_float("guidance", 7.5, "Classifier-free guidance rate; 1 is none.")
SPACING = flags.DEFINE_string("spacing", None, "Of the timesteps; default the model's own.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of all noise.")
BATCH = flags.DEFINE_integer("batch_size", 16, "Images drawn at a time, on all devices.", 1)
MESH = config_flags.DEFINE_config_dict("mesh", ConfigDict({"replica": -1, "fsdp": 1, "tensor": 1}))
INDEX = flags.DEFINE_integer("index", 0, "Which job of an array this is.", lower_bound=0)
OF = flags.DEFINE_integer("of", 1, "How many jobs the array has.", lower_bound=1)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    from ldm_scaling.evaluation.captions import read_captions
    from ldm_scaling.evaluation.folder import draw_folder
    from ldm_scaling.evaluation.generate import Generator
    from ldm_scaling.evaluation.model import Model
    from ldm_scaling.evaluation.presets import preset_captions
    from ldm_scaling.launching import explained
    from ldm_scaling.sharding import make_mesh

    output = Path(OUTPUT.value)
    with explained("generate"):
        path = Path(CAPTIONS.value)
        if PRESET.value:
            captions = preset_captions(PRESET.value, path, COUNT.value)
        else:
            captions = read_captions(path, choice=CHOICE.value, count=COUNT.value)
        mesh = make_mesh(**MESH.value)
        drawn = draw_folder(
            Generator(Model.from_folder(MODEL.value), batch_size=BATCH.value, mesh=mesh),
            captions,
            output,
            sampler=SAMPLER.value,
            steps=STEPS.value,
            guidance=GUIDANCE.value,
            spacing=SPACING.value,
            seed=SEED.value,
            index=INDEX.value,
            of=OF.value,
        )
    print(f"{drawn} images drawn, {len(captions)} in all: {output}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["captions", "output"])
    app.run(main)
