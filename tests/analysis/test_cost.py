"""Table 1, counted from the networks: the paper's numbers are a check on ours and ours on its."""

import pytest

from ldm_scaling.analysis.cost import family_table, quadratic
from ldm_scaling.analysis.figures_models import figure_table_1
from ldm_scaling.unet import unet_config
from ldm_scaling.unet.flops import forward_flops, parameter_count


def test_family_table_agrees_with_the_paper_except_for_its_misprint():
    rows = family_table()
    assert [r.width for r in rows] == [64, 96, 128, 160, 192, 224, 256, 288, 320, 512, 768]
    for row in rows:
        tolerance = 0.1 if row.width > 320 else 0.01  # the paper prints "2B" and "5B"
        assert row.parameters == pytest.approx(row.published_parameters, rel=tolerance)
        assert row.cost == pytest.approx(row.published_cost, abs=0.06)
        if "gflops" in row.misprints:
            assert row.flops > 2 * row.published_flops
        else:
            assert row.flops == pytest.approx(row.published_flops, rel=0.04)
    assert [r.width for r in rows if r.misprints] == [64]
    assert figure_table_1(rows).panels


def test_rows_between_the_traced_ones_are_exact():
    config = unet_config(160)
    row = next(r for r in family_table() if r.width == 160)
    assert row.parameters == parameter_count(config)
    assert row.flops == forward_flops(config, 77)


def test_quadratic():
    through = quadratic({1: 1, 2: 4, 5: 25})
    assert [through(x) for x in (0, 3, 7)] == [0, 9, 49]
