"""Rebuilds a study's report, or one of its figures, from records alone.

python launch/analyze.py --records=FILE.jsonl --output=DIR [--samples=DIR] [--figure=NAME]
"""

import glob
from pathlib import Path
from typing import Any

from absl import app, flags, logging

_RECORDS = flags.DEFINE_multi_string("records", [], "Records; may be repeated, or be a glob.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for report.html and figures.", required=True)
_SAMPLES = flags.DEFINE_string("samples", None, "Folder of image strips named by record hash.")
_METRIC = flags.DEFINE_string(
    "metric", None, "The metric that ranks; default kd_lite0, or fid where there is none."
)
_AXIS = flags.DEFINE_string(
    "axis",
    "sampling_cost",
    "The cost compared; sampling_cost_guided counts guidance's evaluations.",
)
_FAMILY = flags.DEFINE_string("family", None, "Which family, where the records hold several.")
_PRESET = flags.DEFINE_string("preset", None, "Which, where records of several presets are given.")
_FIGURE = flags.DEFINE_string("figure", None, "Only this one: figure_9, pods, weak_scaling, ...")
_DATASET = flags.DEFINE_string("dataset", "", "What the images are, in words, for the report.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"not understood: {' '.join(argv[1:])}")
    from ldm_scaling.analysis.figures import (
        RECORD_FIGURES,
        draw_figure,
        draw_records,
        write_drawing,
    )
    from ldm_scaling.analysis.figures_compile import pod_rows, table
    from ldm_scaling.analysis.report import write_report
    from ldm_scaling.analysis.study import Study
    from ldm_scaling.launching import explained
    from ldm_scaling.records import read_records

    paths = sorted({path for pattern in _RECORDS.value for path in glob.glob(pattern) or [pattern]})
    if not paths:
        raise app.UsageError("--records: at least one file is needed")
    samples = Path(_SAMPLES.value) if _SAMPLES.value else None
    choice: dict[str, Any] = {
        "metric": _METRIC.value,
        "axis": _AXIS.value,
        "family": _FAMILY.value,
        "preset": _PRESET.value,
    }
    with explained("analyze"):
        records = read_records(paths)
        logging.info("%d records from %s", len(records), ", ".join(paths))
        if _FIGURE.value in RECORD_FIGURES:
            written = write_drawing(draw_records(records, _FIGURE.value), Path(_OUTPUT.value))
            print(table(pod_rows(records)))
        elif _FIGURE.value:
            drawing = draw_figure(Study.from_records(records, **choice), _FIGURE.value, samples)
            written = write_drawing(drawing, Path(_OUTPUT.value))
        else:
            context = {"dataset": _DATASET.value}
            written = [
                write_report(records, _OUTPUT.value, samples_dir=samples, context=context, **choice)
            ]
    for path in written:
        print(path)


if __name__ == "__main__":
    app.run(main)
