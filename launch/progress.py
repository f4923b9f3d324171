"""Says how far a run is. Ends with 0 where its last step is done, with 3 before that.

For launchers, since training that was interrupted ends well too. Of the other arguments of
launch/train.py it takes no notice, so that one command line serves both:

python launch/train.py "$@" && python launch/progress.py "$@"
python launch/progress.py --workdir=gs://BUCKET/c768
"""

import sys

from absl import app, flags

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")


def main(argv):
    from ldm_scaling.launching import explained, progress

    with explained("progress"):
        found = progress(WORKDIR.value)
    print(found)
    sys.exit(0 if found.finished else 3)


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    app.run(main, flags_parser=lambda argv: flags.FLAGS(argv, known_only=True))
