"""All figures by name, and how they are written to files.

A figure whose data are missing is left out and its reason given: nothing is drawn from nothing.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ldm_scaling.analysis import figures_compile, figures_cost, figures_models, sample_grids
from ldm_scaling.analysis.sample_grids import Strips
from ldm_scaling.analysis.study import Study
from ldm_scaling.analysis.style import Drawing, NotEnoughDataError, render_drawing
from ldm_scaling.naming import check_name
from ldm_scaling.records import Record

FIGURES: Mapping[str, Callable[[Study, Strips], Drawing]] = {
    "frontier": lambda study, strips: figures_cost.figure_frontier(study),
    "figure_1": sample_grids.figure_family,
    "figure_3": lambda study, strips: figures_models.figure_3(study),
    "figure_7": sample_grids.figure_7,
    "figure_8": lambda study, strips: figures_models.figure_8(study),
    "figure_9": lambda study, strips: figures_cost.figure_9(study),
    "figure_10": sample_grids.figure_10,
    "figure_11": lambda study, strips: figures_cost.figure_11(study),
    "table_1": lambda study, strips: figures_models.figure_table_1(),
}

RECORD_FIGURES: Mapping[str, Callable[[Sequence[Record]], Drawing]] = {
    "pods": figures_compile.figure_pods,
    "weak_scaling": figures_compile.figure_weak_scaling,
}
"""Figures that are no part of a study: they read compile records alone."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """The figures that could be drawn, and why the others could not, by name."""

    drawings: Mapping[str, Drawing]
    missing: Mapping[str, str]


def draw_figure(study: Study, name: str, samples_dir: Path | None = None) -> Drawing:
    """One figure by name.

    Raises:
      ValueError: an unknown name; the nearest is given.
      NotEnoughDataError: the records lack what it shows.
    """
    return FIGURES[check_name("figure", name, FIGURES)](study, Strips(samples_dir))


def draw_records(records: Sequence[Record], name: str) -> Drawing:
    """One of `RECORD_FIGURES`. Raises as `draw_figure`."""
    return RECORD_FIGURES[check_name("figure", name, RECORD_FIGURES)](records)


def draw_all(study: Study, samples_dir: Path | None = None) -> Figures:
    """Every figure that the records allow."""
    drawings, missing = {}, {}
    for name in FIGURES:
        try:
            drawings[name] = draw_figure(study, name, samples_dir)
        except NotEnoughDataError as error:
            missing[name] = str(error)
    return Figures(drawings, missing)


def write_drawing(drawing: Drawing, folder: Path) -> list[Path]:
    """Writes `<name>.png` and `<name>.svg` into a folder; equal drawings give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for fmt in ("png", "svg"):
        path = folder / f"{drawing.name}.{fmt}"
        path.write_bytes(render_drawing(drawing, fmt))
        paths.append(path)
    return paths
