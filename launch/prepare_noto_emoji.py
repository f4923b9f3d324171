"""Prepares the packaged Noto emoji set from a folder with captions.jsonl and images/.

python launch/prepare_noto_emoji.py --source=FOLDER [--output=ldm_scaling/assets]
"""

import tensorflow_datasets as tfds
from absl import app, flags

from ldm_scaling.data.noto_emoji import NotoEmoji

_SOURCE = flags.DEFINE_string("source", None, "Folder with captions.jsonl and images/.")
_OUTPUT = flags.DEFINE_string("output", "ldm_scaling/assets", "Where noto_emoji/VERSION/ goes.")


def main(_):
    builder = NotoEmoji(data_dir=_OUTPUT.value, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=_SOURCE.value)
    builder.download_and_prepare(download_config=config)
    for name, split in builder.info.splits.items():
        print(f"{name}: {split.num_examples} examples, {split.num_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    flags.mark_flag_as_required("source")
    app.run(main)
