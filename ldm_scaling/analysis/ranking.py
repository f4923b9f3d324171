"""The metrics that may rank, how they are printed, and which way is better."""

import dataclasses
from collections.abc import Collection, Mapping

from ldm_scaling.naming import check_name


@dataclasses.dataclass(frozen=True)
class MetricInfo:
    """How a metric is printed and which way is better."""

    label: str
    lower_is_better: bool

    @property
    def arrow(self) -> str:
        """The direction of better."""
        return "↓" if self.lower_is_better else "↑"

    @property
    def sign(self) -> float:
        """+1 or -1: `sign * value` is lower for the better."""
        return 1.0 if self.lower_is_better else -1.0


METRICS: Mapping[str, MetricInfo] = {
    "kd_lite0": MetricInfo("KD-Lite0", True),
    "fd_lite0": MetricInfo("FD-Lite0", True),
    "precision_lite0": MetricInfo("Precision-Lite0", False),
    "recall_lite0": MetricInfo("Recall-Lite0", False),
    "alignment_lite0_minilm": MetricInfo("Alignment Lite0-MiniLM", False),
    "fid": MetricInfo("FID", True),
    "clip_cosine": MetricInfo("CLIP cosine", False),
    "clip_score_torchmetrics": MetricInfo("CLIP score (torchmetrics)", False),
    "inception_score": MetricInfo("Inception score", False),
    "lpips": MetricInfo("LPIPS", True),
    "loss": MetricInfo("Loss on held-out examples", True),
}


_FAMILIES = {
    "fd": MetricInfo("FD", True),
    "kd": MetricInfo("KD", True),
    "score": MetricInfo("Score", False),
    "precision": MetricInfo("Precision", False),
    "recall": MetricInfo("Recall", False),
    "density": MetricInfo("Density", False),
    "coverage": MetricInfo("Coverage", False),
}


def metric_info(name: str) -> MetricInfo:
    """Label and direction of a metric; ValueError with the nearest name for an unknown one.

    Distances and shares between features of any network are known by how their names begin:
    "fd_inception_legacy".
    """
    family, _, network = name.partition("_")
    if name not in METRICS and family in _FAMILIES and network:
        known = _FAMILIES[family]
        return MetricInfo(f"{known.label} ({network})", known.lower_is_better)
    return METRICS[check_name("metric", name, METRICS)]


def ranking_metric(names: Collection[str]) -> str:
    """Which of these metrics ranks where none is asked for: the first of `METRICS` among them.

    Raises ValueError where there is none of them.
    """
    found = [name for name in METRICS if name in names]
    found += sorted(name for name in names if name.partition("_")[0] in ("fd", "kd"))
    if not found:
        raise ValueError(f"metric=None: none of {sorted(names)} ranks by itself; choose one")
    return found[0]
