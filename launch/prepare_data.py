"""Makes a prepared data set from captioned images as people have them.

python launch/prepare_data.py --source=laion/ --output=data/laion --min_side=512 --max_side=512
python launch/prepare_data.py --source=coco/ --output=data/coco --workers=8
python launch/train.py --config=configs/pretrain.py:320 --config.data.name=data/laion ...

Sources (--kind=auto finds out):
  webdataset  folder of tars (or .tar.gz), as img2dataset writes them: KEY.jpg, KEY.txt, KEY.json
  parquet     folder of parquet files with captions, the downloaded images beside them: NAME/KEY.jpg
              for NAME.parquet, or a column "file_name"
  coco        annotations/captions_train2017.json and train2017/ (also images/train2017/)

Every image is decoded once; broken ones, double keys, unsafe names, absurd sizes and damaged tars
are named and counted in the log and in report.json beside the data, and are fatal only above
--max_bad_share. Images are stored byte for byte, except those that --max_side makes smaller. A
call that was interrupted goes on when it is repeated. Equal input gives equal files, whatever the
number of workers. Needs Apache Beam: pip install -c launch/constraints.txt -e ".[data]"
"""

from absl import app, flags, logging

SOURCE = flags.DEFINE_string("source", None, "Folder (searched with all below it), or one file.")
OUTPUT = flags.DEFINE_string("output", None, "Folder to make; give it as --config.data.name.")
KIND = flags.DEFINE_enum("kind", "auto", ["auto", "webdataset", "parquet", "coco"], "See above.")
CAPTION = flags.DEFINE_string(
    "caption_field", "", "Column, or field of KEY.json, with the caption (or a list of them)."
)
SCORE = flags.DEFINE_string("score_field", "", "The same for the aesthetic score.")
MIN_SIDE = flags.DEFINE_integer("min_side", 0, "Shortest short side kept, pixels.")
MAX_ASPECT = flags.DEFINE_float("max_aspect", 0.0, "Largest long side / short side kept; 0: any.")
MIN_CAPTION = flags.DEFINE_integer("min_caption", 1, "Shortest caption kept, characters.")
MAX_CAPTION = flags.DEFINE_integer("max_caption", 0, "Longest caption kept, characters; 0: any.")
MIN_SCORE = flags.DEFINE_float("min_score", None, "Lowest aesthetic score, where known.")
MAX_SIDE = flags.DEFINE_integer(
    "max_side",
    0,
    "Scale longer short sides down to so many pixels, stored as JPEG of quality 95, 4:4:4; 0: keep "
    "every file as it is. The side that is trained at makes reading fastest.",
)
MAX_PIXELS = flags.DEFINE_integer("max_pixels", 2**26, "More are a decompression bomb.")
MAX_BYTES = flags.DEFINE_integer("max_bytes", 2**26, "Larger image files are not read.")
TEST_SHARE = flags.DEFINE_float("test_share", 0.01, "Share that goes to the split 'test'.")
MAX_BAD = flags.DEFINE_float("max_bad_share", 0.01, "This share may be bad (filtered is not bad).")
WORKERS = flags.DEFINE_integer("workers", 1, "Processes on this machine.")
BEAM = flags.DEFINE_multi_string(
    "beam", [], "Option for Apache Beam, instead of --workers: --beam=--runner=FlinkRunner."
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    from ldm_scaling.data.captioned_images import Rules, prepare
    from ldm_scaling.launching import explained

    with explained("prepare_data"):
        rules = Rules(
            min_side=MIN_SIDE.value,
            max_aspect=MAX_ASPECT.value,
            min_caption=MIN_CAPTION.value,
            max_caption=MAX_CAPTION.value,
            min_score=MIN_SCORE.value,
            max_side=MAX_SIDE.value,
            max_pixels=MAX_PIXELS.value,
            max_bytes=MAX_BYTES.value,
            test_share=TEST_SHARE.value,
        )
        prepare(
            SOURCE.value,
            OUTPUT.value,
            rules,
            kind=KIND.value,
            caption_field=CAPTION.value,
            score_field=SCORE.value,
            max_bad_share=MAX_BAD.value,
            workers=WORKERS.value,
            beam_options=BEAM.value,
        )
    logging.info("Prepared: %s (its report.json says what was left out)", OUTPUT.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["source", "output"])
    app.run(main)
