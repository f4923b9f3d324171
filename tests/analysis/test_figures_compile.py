import pytest

from ldm_scaling.analysis.figures import draw_records, write_drawing
from ldm_scaling.analysis.figures_compile import figure_pods, pod_rows, table
from ldm_scaling.analysis.style import NotEnoughDataError
from ldm_scaling.records import Metric, Record


def compiled(
    width, topology="v5p:4x4x4", utilisation=0.4, accumulate=1, program="train", chips=64, slices=1
):
    point = {
        "width": width, "topology": topology, "chips": chips, "mesh_replica": 1, "mesh_fsdp": 64,
        "mesh_tensor": 1, "batch_size": 32 * chips, "accumulate": accumulate, "remat": "dots",
        "program": program, "slices": slices,
    }  # fmt: skip
    costs = {
        "argument_bytes": width * 2e6, "temporary_bytes": width * 5e7, "code_bytes": 5e8,
        "hbm_bytes": width * 5.2e7 + 5e8, "hbm_capacity": 95.0 * 2**30, "seconds": width / 1e3,
        "collective_bytes": width * 1e7, "collective_seconds": width * 1e-5,
        "exposed_seconds": width * 1e-5, "slices_bytes": (slices - 1) * 1e8,
        "slices_seconds": (slices - 1) * 1e-2,
    }  # fmt: skip
    return Record("compile", point, 0, 0, {"utilisation": Metric(utilisation)}, costs)


def test_rows_are_training_steps_in_order():
    rows = pod_rows([compiled(768), compiled(320), compiled(320, program="evaluate")])
    assert [row.width for row in rows] == [320, 768]
    assert (rows[0].chip, rows[0].batch_per_chip, rows[0].mesh) == ("v5p", 32, (1, 64, 1))


def test_the_table_says_what_a_reader_needs():
    lines = table(pod_rows([compiled(320, accumulate=4)])).splitlines()
    assert lines[2] == (
        "| 320 | v5p:4x4x4 | 1 x 64 x 1 | 32 in 4 parts | dots | 16.0 of 95 GiB | 0.32 s | 40 % | "
        "2.98 GiB |"
    )


def test_the_figure_has_a_panel_a_chip_and_is_the_same_each_time(tmp_path):
    records = [compiled(w, t) for w in (320, 768) for t in ("v5p:4x4x4", "v5e:16x16")]
    drawing = draw_records(records, "pods")
    assert len(drawing.panels) == 3
    once, again = (write_drawing(figure_pods(records), tmp_path / n) for n in ("a", "b"))
    assert [p.name for p in once] == ["pods.png", "pods.svg"]
    assert [p.read_bytes() for p in once] == [p.read_bytes() for p in again]


def test_without_records_it_says_what_is_missing():
    with pytest.raises(NotEnoughDataError, match="no compiled training step"):
        figure_pods([compiled(320, program="evaluate")])


def test_weak_scaling_follows_the_width_with_most_numbers_of_chips(tmp_path):
    same = [compiled(64, chips=chips) for chips in (4, 16, 64)]
    records = [*same, compiled(64, chips=128, slices=2), compiled(320), compiled(320, chips=4)]
    drawing = draw_records(records, "weak_scaling")
    assert "width 64, 32 images a chip" in drawing.title
    write_drawing(drawing, tmp_path)
    assert "2 x 64" in (tmp_path / "weak_scaling.svg").read_text()
    with pytest.raises(NotEnoughDataError, match="three numbers of chips"):
        draw_records(same[:2], "weak_scaling")


def test_unknown_figures_name_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'pods'"):
        draw_records([], "pod")
