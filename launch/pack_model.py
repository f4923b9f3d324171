"""Packs a trained micro model into the package: half precision, one autoencoder for all widths.

python launch/pack_model.py --source=runs/micro/vae/export/final --name=vae
python launch/pack_model.py --source=runs/micro/micro-48/export/final --name=micro-48
"""

import shutil
from pathlib import Path

from absl import app, flags

SOURCE = flags.DEFINE_string("source", None, "Folder that training exported.")
NAME = flags.DEFINE_string("name", None, "Folder to make under ldm_scaling/assets/models.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    from ldm_scaling.checkpoint import diffusers, packaged

    source, target = Path(SOURCE.value), packaged.MODELS / NAME.value
    if not (source / "training.json").is_file():
        raise SystemExit(f"pack_model: {source} is no export of launch/train.py (training.json)")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    if (source / "unet").is_dir():
        config, params = diffusers.import_unet(source / "unet")
        diffusers.export_unet(config, params, target / "unet", dtype="float16")
        shutil.copytree(source / "scheduler", target / "scheduler")
        shutil.copy2(source / "model_index.json", target)
    else:
        diffusers.export_autoencoder(*diffusers.import_autoencoder(source), target, dtype="float16")
    shutil.copy2(source / "training.json", target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    flags.mark_flags_as_required(["source", "name"])
    app.run(main)
