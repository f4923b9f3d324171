"""Scores generated images against real ones: FID, KID, Inception score, precision and recall.

    python launch/eval_fid.py --samples=drawn --reference=coco_256 \\
        --weights=pt_inception-2015-12-05-6726825d.pth --output=scores.jsonl
    python launch/eval_fid.py --samples=drawn --reference=statistics.npz --weights=FILE \\
        --resize=clean
    python launch/eval_fid.py --samples=drawn --reference=noto_emoji:test --features=lite0
    python launch/eval_fid.py --samples=drawn --reference=coco_256 --weights=FOLDER \\
        --features=dinov2

--samples and --reference are folders of images, .npz arrays, or DATA:SPLIT; a reference may also be
the statistics ("mu", "sigma") of pytorch-fid, clean-fid or --save_reference. Each measurement adds
a line to --output, with all that decides its numbers. Distances between features of DINOv2
(arXiv:2306.04675, which takes ViT-L/14) are named after it, "fd_dinov2_1024_224", and are no FID.
Several processes, which find each other as those of launch/train.py do, share the images.
"""

from pathlib import Path

from absl import app, flags

from ldm_scaling.hosts import define_flags

SAMPLES = flags.DEFINE_string("samples", None, "Generated images.")
REFERENCE = flags.DEFINE_string("reference", None, "Real images, or their statistics.")
FEATURES = flags.DEFINE_enum(
    "features",
    "inception",
    ["inception", "lite0", "dinov2"],
    "inception is FID's; lite0 needs no download; dinov2 is that of arXiv:2306.04675.",
)
WEIGHTS = flags.DEFINE_string(
    "weights",
    None,
    "Of Inception: pt_inception-2015-12-05-6726825d.pth; of DINOv2: a folder of transformers'.",
)
PUBLISHED = flags.DEFINE_bool(
    "published", True, "Check Inception's hash; with other weights the result is not called FID."
)
RESIZE = flags.DEFINE_enum(
    "resize",
    "legacy",
    ["legacy", "clean", "tensorflow"],
    "To 299 pixels as pytorch-fid, as clean-fid, or as the original FID and torch-fidelity do.",
)
PRESET = flags.DEFINE_string(
    "preset",
    "",
    "mlperf, mosaicml or paper: sets --resize; of --reference the images that were drawn count.",
)
SIZE = flags.DEFINE_integer("size", 224, "Side at which Lite0 and DINOv2 see an image.", 32)
METRICS = flags.DEFINE_list("metrics", ["fid", "kid", "is"], "fid,fid_infinity,kid,is,prdc")
RESAMPLES = flags.DEFINE_integer("resamples", 0, "Bootstrap, for an interval of the FID.", 0)
SAVE = flags.DEFINE_string("save_reference", None, "Keep the reference's statistics (.npz).")
BATCH = flags.DEFINE_integer("batch_size", 32, "Images at a time, on all devices.", 1)
OUTPUT = flags.DEFINE_string("output", "scores.jsonl", "Records; a line is added.")
define_flags()


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    from ldm_scaling.evaluation.distances import distance_record
    from ldm_scaling.hosts import is_first
    from ldm_scaling.launching import running
    from ldm_scaling.records import append_record, metrics_table

    with running("eval_fid"):
        record = distance_record(
            _network(),
            SAMPLES.value,
            REFERENCE.value,
            METRICS.value,
            published=PUBLISHED.value and FEATURES.value != "dinov2",  # not checked
            save_reference=Path(SAVE.value) if SAVE.value else None,
            resamples=RESAMPLES.value,
            preset=PRESET.value,
        )
        if is_first():
            append_record(OUTPUT.value, record)
            print(metrics_table(record))
            print(f"{record.num_samples} images; a record was added to {OUTPUT.value}")


def _network():
    import jax

    from ldm_scaling.checkpoint.diffusers import import_dinov2
    from ldm_scaling.checkpoint.hub import find_model_folder
    from ldm_scaling.checkpoint.published import INCEPTION, load_inception
    from ldm_scaling.evaluation.features import Dinov2Features, Inception, Lite0
    from ldm_scaling.evaluation.presets import preset
    from ldm_scaling.sharding import make_mesh

    mesh = make_mesh(replica=-1, fsdp=1, tensor=1, devices=jax.local_devices())
    if FEATURES.value == "lite0":
        return Lite0(SIZE.value, BATCH.value, mesh=mesh)
    if FEATURES.value == "dinov2":
        if not WEIGHTS.value:
            raise ValueError(
                "weights: DINOv2 is read from a folder as transformers saves it, such as that of "
                "facebook/dinov2-large; give its path, or that name"
            )
        folder = find_model_folder(WEIGHTS.value, "weights")
        return Dinov2Features(*import_dinov2(folder), SIZE.value, BATCH.value, mesh)
    if not WEIGHTS.value:
        raise ValueError(
            f"weights: FID needs Inception's published weights; get {INCEPTION} and give its path, "
            "or use --features=lite0, which is no FID"
        )
    params = load_inception(WEIGHTS.value, published=PUBLISHED.value)
    resize = preset(PRESET.value).resize if PRESET.value else RESIZE.value
    return Inception(params, resize, BATCH.value, mesh)


if __name__ == "__main__":
    flags.mark_flags_as_required(["samples", "reference"])
    app.run(main)
