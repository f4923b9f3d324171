import dataclasses
import math

import pytest

from ldm_scaling.analysis.ranking import metric_info
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
        metric_info("kd_lite")
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
