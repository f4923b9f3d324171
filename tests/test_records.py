"""Records survive torn writes, keep a canonical order, and name a measurement by its hash."""

import dataclasses

import pytest

from ldm_scaling.records import (
    Metric,
    Record,
    append_record,
    find_records,
    metrics_table,
    read_records,
)


def record(**changes) -> Record:
    base = Record(
        kind="samples",
        point={"width": 16, "sampler": "ddim", "steps": 4, "guidance": 3.0},
        seed=0,
        num_samples=8,
        metrics={"kd_lite0": Metric(0.5, 0.4, 0.6)},
        costs={"sampling_cost": 0.3},
    )
    return dataclasses.replace(base, **changes)


def test_round_trip(tmp_path):
    path = tmp_path / "deep" / "records.jsonl"
    append_record(path, record())
    append_record(path, record(seed=1))
    assert read_records(path) == [record(), record(seed=1)]


def test_hash_names_the_measurement_and_not_its_result():
    assert record().hash == record(metrics={}, provenance={"seconds": 3.0}, costs={}).hash
    for change in (
        {"seed": 1},
        {"num_samples": 9},
        {"weights_hash": "ab"},
        {"protocol": {"reference": "test"}},
        {"point": {"width": 24}},
        {"kind": "training"},
    ):
        assert record(**change).hash != record().hash


def test_order_does_not_depend_on_the_file(tmp_path):
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path, seeds in ((a, (2, 0, 1)), (b, (1, 2, 0))):
        for seed in seeds:
            append_record(path, record(seed=seed))
    assert read_records(a) == read_records(b)


def test_last_of_equal_hashes_wins(tmp_path):
    path = tmp_path / "records.jsonl"
    append_record(path, record())
    append_record(path, record(metrics={"kd_lite0": Metric(0.1)}))
    assert [r.metrics["kd_lite0"].value for r in read_records(path)] == [0.1]


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_torn_last_line_is_skipped_and_mended(tmp_path, cut):
    path = tmp_path / "records.jsonl"
    append_record(path, record())
    append_record(path, record(seed=1))
    path.write_bytes(path.read_bytes()[:-cut] if cut > 1 else path.read_bytes()[:-2])
    with pytest.warns(UserWarning, match=r"records.jsonl:2: skipped"):
        assert read_records(path) == [record()]
    append_record(path, record(seed=2))
    with pytest.warns(UserWarning, match="skipped"):
        assert [r.seed for r in read_records(path)] == [0, 2]


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_records(tmp_path / "none.jsonl")


@pytest.mark.parametrize("line", ["[]", "{}", '{"kind": "samples"}', "null", "{nonsense"])
def test_lines_that_are_no_records(line):
    with pytest.raises(ValueError, match=r"."):
        Record.from_json(line)


def test_records_are_found_by_file_or_packaged_name(tmp_path):
    path = tmp_path / "own.jsonl"
    append_record(path, record())
    assert find_records(path) == path
    packaged = read_records(find_records("micro-training"))
    assert {r.kind for r in packaged} >= {"training", "samples"}
    names = r"\['micro-training', 'pods', 'sampling', 'smallest_slices', 'weak_scaling'\]"
    with pytest.raises(FileNotFoundError, match=f"'nowhere'.*{names}"):
        find_records("nowhere")


def test_the_table_shows_intervals_where_there_are_any():
    found = {"fid": Metric(12.5, 12.0, 13.25), "kid": Metric(0.001)}
    first, second = metrics_table(Record("distance", {}, 0, 10, found)).splitlines()
    assert first.split() == ["fid", "12.5000", "[12.0000,", "13.2500]"]
    assert second.split() == ["kid", "0.0010"]
