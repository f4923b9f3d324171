"""Scores how well images show their captions, with any CLIP that transformers reads.

    python launch/eval_clip.py --samples=drawn --model=clip-vit-base-patch16 --output=scores.jsonl
    python launch/eval_clip.py --samples=drawn --captions=captions.tsv --model=FOLDER \\
        --reference=coco_336

--samples is a folder of launch/generate.py, which knows its captions, or any folder of images that
are named by the ids of --captions. --reference, real images, adds CMMD. The cosine is unscaled; the
scalings of torchmetrics and of the CLIPScore paper stand beside it. Several processes, which find
each other as those of launch/train.py do, share the images.
"""

from pathlib import Path

from absl import app, flags

from ldm_scaling.hosts import define_flags

SAMPLES = flags.DEFINE_string("samples", None, "Folder of images.")
CAPTIONS = flags.DEFINE_string("captions", None, "Their captions; default what the folder says.")
MODEL = flags.DEFINE_string(
    "model", None, "Folder of transformers' CLIPModel, or OWNER/NAME (Hub)."
)
REFERENCE = flags.DEFINE_string("reference", None, "Real images: adds CMMD.")
PRESET = flags.DEFINE_string(
    "preset", "", "mlperf, mosaicml or paper, for the record; --model has to be its CLIP."
)
RESAMPLES = flags.DEFINE_integer("resamples", 1000, "Bootstrap, for an interval; 0 for none.", 0)
BATCH = flags.DEFINE_integer("batch_size", 32, "Images at a time, on all devices.", 1)
OUTPUT = flags.DEFINE_string("output", "scores.jsonl", "Records; a line is added.")
define_flags()


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    import jax

    from ldm_scaling.evaluation.clip_score import ClipEmbedder, clip_record
    from ldm_scaling.hosts import is_first
    from ldm_scaling.launching import running
    from ldm_scaling.records import append_record, metrics_table
    from ldm_scaling.sharding import make_mesh

    with running("eval_clip"):
        mesh = make_mesh(replica=-1, fsdp=1, tensor=1, devices=jax.local_devices())
        record = clip_record(
            ClipEmbedder.from_folder(MODEL.value, batch_size=BATCH.value, mesh=mesh),
            SAMPLES.value,
            Path(CAPTIONS.value) if CAPTIONS.value else None,
            reference=REFERENCE.value,
            resamples=RESAMPLES.value,
            preset=PRESET.value,
        )
        if is_first():
            append_record(OUTPUT.value, record)
            print(metrics_table(record))
            print(f"{record.num_samples} images; a record was added to {OUTPUT.value}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["samples", "model"])
    app.run(main)
