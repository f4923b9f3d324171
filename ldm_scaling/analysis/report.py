"""One self-contained `report.html`, and the figures as files beside it.

The same records give the same bytes: no time of day, no versions, no machine in it.
"""

import base64
import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from ldm_scaling.analysis import findings as words
from ldm_scaling.analysis.claims import compare_pairs, paper_claims
from ldm_scaling.analysis.cost import AXES, count, digits, family_table, reference_width
from ldm_scaling.analysis.figures import draw_all, write_drawing
from ldm_scaling.analysis.figures_models import loss_law, trained_law
from ldm_scaling.analysis.frontier import segments, trace
from ldm_scaling.analysis.guidance_optimum import best_guidance
from ldm_scaling.analysis.stability import winner_stability
from ldm_scaling.analysis.study import Point, Study
from ldm_scaling.analysis.style import (
    Drawing,
    NotEnoughDataError,
    Panel,
    render_panel,
    sampler_label,
    width_colours,
)
from ldm_scaling.records import Record

_LARGEST_SVG = 150_000  # bytes; beyond that a panel goes into the report as PNG if that is smaller

DEFAULT_COMMANDS = (
    "python launch/study.py --config=configs/study.py:micro --workdir=DIR",
    "python launch/analyze.py --records=DIR/records.jsonl --samples=DIR/samples --output=REPORT",
)


def write_report(
    records: Iterable[Record],
    output_dir: str | Path,
    *,
    samples_dir: str | Path | None = None,
    metric: str | None = None,
    axis: str = "sampling_cost",
    family: str | None = None,
    preset: str | None = None,
    title: str = "How big should the model be for the budget?",
    context: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `report.html` and the figures as PNG and SVG into `output_dir`.

    Args:
      records: of one or more studies; those of kind "samples" are analysed.
      output_dir: made if needed; files of the same names are replaced.
      samples_dir: folder of the strips that `sample_grids` reads.
      metric, family, preset: as `Study.from_records`.
      axis: which recorded cost is compared, a key of `AXES`.
      title: the report's title.
      context: what records do not say. "dataset": a phrase such as "Noto emoji, 64x64";
        "commands": how this study was made, a sequence of shell lines; "limitations": sentences
        to add.

    Returns:
      The path of `report.html`.

    Raises:
      ValueError: as `Study.from_records`, or an unknown axis or key of `context`.
    """
    if axis not in AXES:
        raise ValueError(f"axis={axis!r}: one of {', '.join(AXES)} is meant")
    context = dict(context or {})
    unknown = sorted(set(context) - {"dataset", "commands", "limitations"})
    if unknown:
        raise ValueError(f"context: unknown keys {unknown}; known: dataset, commands, limitations")
    study = Study.from_records(records, metric=metric, axis=axis, family=family, preset=preset)
    output = Path(output_dir)
    figures = draw_all(study, Path(samples_dir) if samples_dir else None)
    for drawing in figures.drawings.values():
        write_drawing(drawing, output)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ldm_scaling.analysis"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(digits=digits, count=count, sampler=sampler_label, bind=_bind)
    environment.globals.update(probability=words.probability_words, inf=math.inf, nan=math.nan)
    html = environment.get_template("report.html.j2").render(
        title=title,
        study=study,
        axis=AXES[axis],
        context={"dataset": "", "commands": DEFAULT_COMMANDS, "limitations": (), **context},
        figures=_inline(figures.drawings.values()),
        missing=figures.missing,
        colours=width_colours(study.widths),
        reference=reference_width(study),
        **_analyses(study),
    )
    path = output / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


@dataclasses.dataclass(frozen=True)
class _InlinePanel:
    uri: str
    width: int  # CSS pixels


def _inline(drawings: Iterable[Drawing]) -> dict[str, tuple[Drawing, list[_InlinePanel]]]:
    return {d.name: (d, [_inline_panel(p) for p in d.panels]) for d in drawings}


def _inline_panel(panel: Panel) -> _InlinePanel:
    data, mime = render_panel(panel, "svg"), "image/svg+xml"
    if len(data) > _LARGEST_SVG and len(png := render_panel(panel, "png")) < len(data):
        data, mime = png, "image/png"
    uri = f"data:{mime};base64,{base64.b64encode(data).decode()}"
    return _InlinePanel(uri, round(panel.width * 96))


def _bind(text: str) -> str:
    """Keeps numbers on one line with what belongs to them."""
    for loose in (" %", " ± ", " > 0", " < 0", " = 0", " GFLOP", " MFLOP", " TFLOP"):
        text = text.replace(loose, loose.replace(" ", "\u00a0"))
    return text


def _analyses(study: Study) -> dict[str, Any]:
    """What the template's sections show."""
    frontier = trace(study)
    claims = paper_claims(frontier, certain=study.has_uncertainty)
    by_sampler = words.claims_by_sampler(study)
    best = best_guidance(study)
    stability = winner_stability(study, frontier)
    return {
        "answer": words.frontier_findings(study, frontier),
        "claims": words.claim_findings(claims),
        "sampler_findings": words.sampler_findings(study, by_sampler),
        "guidance_findings": words.guidance_findings(best),
        "training_findings": _training_findings(study),
        "calibration": _calibration(study),
        "stability_findings": words.stability_findings(stability),
        "segments": segments(frontier),
        "sweep_end": float(frontier.costs[-1]),
        "pairs": compare_pairs(frontier),
        "best_guidance": best,
        "family_rows": family_table(),
        "points": _point_rows(study),
        "other_metrics": _other_metrics(study),
    }


def _training_findings(study: Study) -> list[words.Finding]:
    try:
        found = words.training_findings(study, trained_law(study)[1])
    except NotEnoughDataError as error:
        found = [
            words.Finding(
                f"Nothing can be said of {study.info.label} in training compute: {error}."
            )
        ]
    losses = loss_law(study)
    return found + (words.loss_findings(losses[1]) if losses else [])


def _calibration(study: Study) -> dict[str, float]:
    """What the alignment score is worth on real images, where it was measured."""
    for record in study.records:
        if record.kind == "alignment_calibration":
            return {name: float(metric.value) for name, metric in record.metrics.items()}
    return {}


def _other_metrics(study: Study) -> list[str]:
    return sorted({m for p in study.trained for m in p.records[0].metrics} - {study.metric})


def _point_rows(study: Study) -> list[Point]:
    return sorted(
        study.trained, key=lambda p: (p.width, -p.training_steps, p.sampler, p.steps, p.guidance)
    )
