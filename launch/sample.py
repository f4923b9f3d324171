"""Draws images for prompts and saves them as one picture, a row per prompt.

python launch/sample.py --prompt="red apple" --prompt="cat face" --output=images.png
python launch/sample.py --model=FOLDER --prompt="a house" --sampler=dpmpp_2m --steps=20 --count=4
python launch/sample.py --model=FOLDER --prompt="a house" --mesh.replica=1 --mesh.fsdp=-1

The last one spreads the weights over all devices, where they are too large for one.
"""

from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

MODEL = flags.DEFINE_string(
    "model", "micro-48", "A packaged model, a folder in the diffusers layout, or OWNER/NAME (Hub)."
)
PROMPT = flags.DEFINE_multi_string("prompt", None, "What to draw; may be given several times.")
NEGATIVE_PROMPT = flags.DEFINE_string(
    "negative_prompt", "", "What guidance leads away from, in all images."
)
COUNT = flags.DEFINE_integer("count", 4, "Images of each prompt.", lower_bound=1)
SAMPLER = flags.DEFINE_string("sampler", "ddim", "ddim, ddpm or dpmpp_2m.")
STEPS = flags.DEFINE_integer("steps", 50, "Sampling steps, 1 to 1000.")
GUIDANCE = flags.DEFINE_float("guidance", 7.5, "Classifier-free guidance rate; 1 is none.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of all noise.")
MESH = config_flags.DEFINE_config_dict("mesh", ConfigDict({"replica": -1, "fsdp": 1, "tensor": 1}))
OUTPUT = flags.DEFINE_string("output", "samples.png", "Where the picture goes.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    from ldm_scaling.evaluation.pictures import save_grid
    from ldm_scaling.launching import explained
    from ldm_scaling.pipeline import TextToImage
    from ldm_scaling.sharding import make_mesh

    with explained("sample"):
        draw = TextToImage.from_pretrained(MODEL.value, mesh=make_mesh(**MESH.value))
        images = draw(
            [prompt for prompt in PROMPT.value for _ in range(COUNT.value)],
            negative_prompt=NEGATIVE_PROMPT.value,
            steps=STEPS.value,
            guidance=GUIDANCE.value,
            sampler=SAMPLER.value,
            seed=SEED.value,
            progress=True,
        )
    save_grid(Path(OUTPUT.value), images, columns=COUNT.value, labels=PROMPT.value)
    print(f"{len(images)} images of {len(PROMPT.value)} prompts: {OUTPUT.value}")


if __name__ == "__main__":
    flags.mark_flag_as_required("prompt")
    app.run(main)
