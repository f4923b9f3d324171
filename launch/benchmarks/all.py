"""The comparisons of launch/benchmark.py, by name."""

from benchmarks import cases, scores, training

CASES = {
    "attention": cases.attention(),
    "evaluation-64": cases.evaluation(64),
    "evaluation-128": cases.evaluation(128),
    "evaluation-320": cases.evaluation(320),
    "sampling": cases.sampling(),
    "training": training.training(),
    "inception": scores.inception(),
    "clip": scores.clip(),
}
