"""The metrics that may rank, how they are printed, and which way is better."""

import dataclasses
from collections.abc import Mapping

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
    "clip_score": MetricInfo("CLIP score", False),
    "inception_score": MetricInfo("Inception score", False),
    "lpips": MetricInfo("LPIPS", True),
    "loss": MetricInfo("Loss on held-out examples", True),
}


def metric_info(name: str) -> MetricInfo:
    """Label and direction of a metric; ValueError with the nearest name for an unknown one."""
    return METRICS[check_name("metric", name, METRICS)]
