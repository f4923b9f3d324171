import dataclasses
import math

import pytest

from ldm_scaling.analysis.ranking import metric_info, ranking_metric
from ldm_scaling.analysis.study import Study, standard_error
from ldm_scaling.records import Metric
from tests.analysis.synthetic_records import record, smaller_first, study_records


def test_order_and_repetition_of_records_do_not_matter():
    records = study_records(seeds=(0, 1))
    assert Study.from_records(records) == Study.from_records([*reversed(records), records[3]])


def test_standard_error_takes_the_larger_of_interval_and_spread():
    assert standard_error([1.0], [0.2]) == 0.2
    assert standard_error([1.0, 1.0], [0.2, 0.2]) == pytest.approx(0.2 / math.sqrt(2))
    assert standard_error([0.0, 2.0], [0.2, 0.2]) == pytest.approx(1.0)
    assert standard_error([0.0, 2.0], [math.nan, math.nan]) == pytest.approx(1.0)
    assert math.isnan(standard_error([1.0], [math.nan]))


def test_sigma_is_read_from_the_interval():
    study = Study.from_records([record(smaller_first, 16, 8, sigma=0.05)])
    assert study.points[0].sigma == pytest.approx(0.05, rel=1e-3)


def test_no_records():
    with pytest.raises(ValueError, match="none given"):
        Study.from_records([])


def test_only_other_kinds():
    other = dataclasses.replace(record(smaller_first, 16, 8), kind="training")
    with pytest.raises(ValueError, match=r"none of kind 'samples' among kinds \['training'\]"):
        Study.from_records([other])


def test_unknown_metric_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'kd_lite0'"):
        metric_info("kdlite0")
    with pytest.raises(ValueError, match="not in the records"):
        Study.from_records(study_records(), metric="fid")


def test_nan_metrics_are_left_out_and_said():
    records = study_records()
    broken = dataclasses.replace(records[0], metrics={"kd_lite0": Metric(math.nan)})
    study = Study.from_records([broken, *records[1:]])
    assert len(study.points) == len(records) - 1
    assert "no finite kd_lite0" in study.notes[0]
    with pytest.raises(ValueError, match="no record of family 'micro' has a finite value"):
        Study.from_records([broken])


def test_other_numbers_of_samples_are_not_mixed_in():
    records = study_records()
    fewer = dataclasses.replace(records[0], num_samples=64)
    study = Study.from_records([fewer, *records])
    assert {p.num_samples for p in study.points} == {512}
    assert "1 records used another protocol" in study.notes[0]


def test_missing_intervals_get_the_median():
    records = study_records(sigma=0.05)
    bare = dataclasses.replace(records[0], metrics={"kd_lite0": Metric(1.0)})
    study = Study.from_records([bare, *records[1:]])
    assert {round(p.sigma, 4) for p in study.points} == {0.05}
    assert "1 points have no interval" in study.notes[0]


def test_only_the_longest_training_competes():
    study = Study.from_records(study_records(training=(1000, 5000)))
    assert {p.training_steps for p in study.points} == {20000}
    assert {p.training_steps for p in study.trained} == {1000, 5000, 20000}


def test_families_are_not_mixed():
    records = study_records()
    other = dataclasses.replace(records[0], point={**records[0].point, "family": "paper"})
    with pytest.raises(ValueError, match="choose one"):
        Study.from_records([*records, other])
    assert Study.from_records([*records, other], family="micro").family == "micro"
    with pytest.raises(ValueError, match="the records hold"):
        Study.from_records(records, family="paper")


def test_missing_cost_is_named():
    bare = dataclasses.replace(record(smaller_first, 16, 8), costs={})
    with pytest.raises(ValueError, match=r"costs\['sampling_cost'\] is missing"):
        Study.from_records([bare])


def under(preset, records, **scale):
    """The same study as a preset's, with the field's metrics."""
    factor = scale.get("by", 1.0)
    return [
        dataclasses.replace(
            r,
            metrics={
                "fid": Metric(20 * factor * r.metrics["kd_lite0"].value),
                "clip_cosine": r.metrics["alignment_lite0_minilm"],
            },
            protocol={"preset": preset, "features": "inception_legacy", "strip_captions": []},
        )
        for r in records
    ]


def test_presets_do_not_compare():
    records = study_records()
    paper, mlperf = under("paper", records), under("mlperf", records[:5], by=0.5)
    with pytest.raises(ValueError, match=r"presets \['mlperf', 'paper'\].*do not compare"):
        Study.from_records([*paper, *mlperf])
    chosen = Study.from_records([*paper, *mlperf], preset="mlperf")
    assert (chosen.metric, len(chosen.points)) == ("fid", 5)
    assert {r.protocol["preset"] for p in chosen.points for r in p.records} == {"mlperf"}
    with pytest.raises(ValueError, match="preset='mosaicml': fid was measured under"):
        Study.from_records(paper, preset="mosaicml")
    without = [dataclasses.replace(r, protocol={}) for r in mlperf]
    with pytest.raises(ValueError, match="'' is none"):
        Study.from_records([*paper, *without])


def test_records_of_other_metrics_are_no_reason_to_refuse():
    records = study_records()
    study = Study.from_records([*under("paper", records), *records])
    assert study.metric == "kd_lite0"  # of those that are there, the first in `METRICS`
    assert len(Study.from_records([*under("paper", records), *records], metric="fid").points) == 96


def test_distances_of_any_network_rank():
    assert metric_info("fd_inception_legacy").lower_is_better
    assert not metric_info("recall_dinov2_1024_224").lower_is_better
    with pytest.raises(ValueError, match="metric='fd'"):
        metric_info("fd")
    assert ranking_metric(["clip_cosine", "fid"]) == "fid"
    assert ranking_metric(["fd_inception_legacy", "recall_x"]) == "fd_inception_legacy"
    with pytest.raises(ValueError, match="choose one"):
        ranking_metric(["recall_x"])
