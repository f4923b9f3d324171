"""Writes a model as a folder that diffusers' StableDiffusionPipeline and this library open.

    python launch/convert.py --source=micro-48 --output=converted
    python launch/convert.py --source=runs/c320/export/final --output=c320 --dtype=float16
    python launch/convert.py --source=sd.safetensors --tokenizer=CLIP_TOKENIZER --output=sd15

--source is a folder with model_index.json, the name of a packaged model, OWNER/NAME of the Hugging
Face Hub, or one file in the layout of the original Stable Diffusion 1.x and 2.x (.safetensors; of a
.ckpt nothing but tensors is read).
Weights are read and written piece by piece.
"""

from pathlib import Path

from absl import app, flags

SOURCE = flags.DEFINE_string(
    "source", None, "Folder, packaged model, OWNER/NAME of the Hugging Face Hub, or single file."
)
OUTPUT = flags.DEFINE_string("output", None, "Folder to make.")
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "float16", "bfloat16"], "Of the written weights."
)
TOKENIZER = flags.DEFINE_string("tokenizer", None, "Folder of CLIP's tokenizer, for a single file.")
PREDICTION = flags.DEFINE_enum(
    "prediction_type",
    None,
    ["epsilon", "v_prediction"],
    "Of a single file, which does not say it; v_prediction for Stable Diffusion 2 of 768 pixels.",
)
SAMPLE_SIZE = flags.DEFINE_integer(
    "sample_size", 64, "Side of the latents of a single file's model; 96 for 768 pixels.", 8
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    from ldm_scaling.checkpoint.conversion import convert_folder, convert_single_file
    from ldm_scaling.evaluation.model import find_folder, vae_folder
    from ldm_scaling.launching import explained

    source, output = Path(SOURCE.value), Path(OUTPUT.value)
    with explained("convert"):
        if source.is_file():
            if not TOKENIZER.value:
                raise ValueError("tokenizer: a single file holds none; give the folder of CLIP's")
            convert_single_file(
                source,
                output,
                tokenizer=Path(TOKENIZER.value),
                prediction_type=PREDICTION.value,
                sample_size=SAMPLE_SIZE.value,
                dtype=DTYPE.value,
            )
        else:
            folder = find_folder(SOURCE.value)
            convert_folder(folder, output, vae=vae_folder(folder), dtype=DTYPE.value)
    print(f"Written: {output}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["source", "output"])
    app.run(main)
