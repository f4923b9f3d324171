"""The bill of a study: what each point costs, and which of them a budget pays."""

import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from ldm_scaling.diffusion import Schedule, sampler_table
from ldm_scaling.evaluation import bill as billing
from ldm_scaling.evaluation.bill import affordable, as_ranges, bill, bill_table, from_ranges
from ldm_scaling.evaluation.points import study_protocol, study_settings
from ldm_scaling.evaluation.presets import PRESETS
from ldm_scaling.records import find_records, read_records
from ldm_scaling.unet import WIDTHS, unet_config
from ldm_scaling.unet.flops import forward_flops
from tests.train.test_configs import get_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def paper():
    return get_config("sweep", "paper")


@pytest.fixture(scope="module")
def items(paper):
    return bill(paper)


def test_the_papers_study_is_whole(paper, items):
    settings = study_settings(paper)
    assert len(items) == len(WIDTHS) * len(settings)
    assert {s["sampler"] for s in settings} == {"ddim", "ddpm", "dpmpp_2m"}
    assert len({s["guidance"] for s in settings}) == 8
    assert max(s["steps"] for s in settings if s["sampler"] == "dpmpp_2m") == 20
    for setting in settings:  # every one of them can be drawn
        sampler_table(setting["sampler"], Schedule.from_name("scaled_linear"), setting["steps"])
    assert study_protocol(paper).num_samples == PRESETS["paper"].count == 30_000
    assert [item.index for item in items] == list(range(len(items)))


def test_a_point_costs_its_flops_over_what_the_chip_does(items):
    (record,) = [
        r for r in read_records(find_records("pods"))
        if r.point["width"] == 320 and r.point["topology"] == "v5p:4x4x4"
    ]  # fmt: skip
    item = next(i for i in items if (i.width, i.sampler, i.steps) == (320, "ddim", 50))
    evaluations = 100 * forward_flops(unet_config(320)) / record.metrics["utilisation"].value
    decoder = billing.decoder_flops() / billing.decoder_utilisation()
    assert item.hours == pytest.approx(30_000 * (evaluations + decoder) / 459e12 / 3600)
    plain = bill(ConfigDict({
        "models": ("a",), "widths": (320,), "seeds": (0,), "protocol": {"num_samples": 30_000},
        "grids": {"ddim": {"steps": (50,), "guidance": (1.0,)}},
    }))  # fmt: skip
    assert plain[0].hours == pytest.approx(30_000 * (evaluations / 2 + decoder) / 459e12 / 3600)


def test_the_decoder_is_that_of_stable_diffusion():
    # Multiply-adds in 1e9; a 3x3 convolution of 512 channels at 64 pixels takes 9.66.
    conv = 64 * 64 * 9 * 512 * 512 / 1e9
    middle_and_first = 10 * conv + 4 * conv / 9 + 2 * 4096**2 * 512 / 1e9
    second = 6 * 4 * conv
    others = 2 * (8 * conv + 4 * conv + 8 * conv / 9 + 4 * 4 * conv)  # half as wide, twice the side
    upsampling = 4 * conv + 16 * conv + 16 * conv
    by_hand = middle_and_first + second + others + upsampling * 4 / 9  # as four 2x2 convolutions
    assert billing.decoder_flops() / 2e9 == pytest.approx(by_hand, rel=0.003)


def test_the_bill_stays_above_what_sampling_compiles_to():
    """The records of sampling c = 64 on 4 chips of v5p, guided, against the bill of the same."""
    records = read_records(find_records("sampling"))
    assert {record.point["steps"] for record in records} == {1, 50}
    assert 0.3 < billing.decoder_utilisation() < 0.6
    for record in records:
        one = {"steps": (record.point["steps"],), "guidance": (2.0,)}
        study = {"models": ("a",), "widths": (64,), "seeds": (0,), "grids": {"ddim": one},
                 "protocol": {"num_samples": record.point["batch_size"]}}  # fmt: skip
        (item,) = bill(ConfigDict(study))
        compiled = record.costs["seconds"] * record.point["chips"] / 3600
        assert compiled < item.hours < 1.25 * compiled


def test_a_budget_pays_the_cheapest(items):
    everything = sum(item.hours for item in items)
    assert affordable(items, everything * 1.001) == items
    assert affordable(items, 0.0) == []
    kept = affordable(items, 500.0)
    assert sum(item.hours for item in kept) <= 500
    left = [item for item in items if item not in kept]
    assert max(item.hours for item in kept) <= min(item.hours for item in left)
    assert sum(item.hours for item in kept) + min(item.hours for item in left) > 500
    assert [item.index for item in kept] == sorted(item.index for item in kept)


def test_the_table_adds_up(items):
    lines = bill_table(items, "v5p").splitlines()
    assert len(lines) == len(WIDTHS) + 2
    cells = [[float(cell.replace(",", "")) for cell in line.split()[1:]] for line in lines[1:-1]]
    total = [float(cell.replace(",", "")) for cell in lines[-1].split()[1:]]
    for column, whole in enumerate(total):
        assert sum(row[column] for row in cells) == pytest.approx(whole, abs=len(cells))
    assert total[0] == len(items)


@pytest.mark.parametrize("text", ["", "a", "1-", "3-1", "-2", "1,,2", "1.5"])
def test_ranges_that_are_none(text):
    with pytest.raises(ValueError, match="give numbers and ranges"):
        from_ranges(text)


def test_ranges_come_back():
    assert from_ranges("0-2,5") == [0, 1, 2, 5]
    assert as_ranges([5, 1, 0, 2]) == "0-2,5"
    assert as_ranges([]) == ""


def test_what_has_no_bill(paper):
    with pytest.raises(ValueError, match="chip='v4': no compile record of width 64, only"):
        bill(paper, "v4")
    with pytest.raises(ValueError, match="did you mean 'v5p'"):
        bill(paper, "v5q")
    without = ConfigDict({**paper.to_dict(), "widths": (64,)})
    with pytest.raises(ValueError, match=r"widths=\(64,\): a bill needs .* each of 11 models"):
        bill(without)


def test_the_command_names_the_jobs(tmp_path):
    command = [
        sys.executable, "launch/sweep.py", "--config=configs/sweep.py:paper", "--bill",
        "--budget=20", f"--jobs={tmp_path}/jobs.txt", "--config.widths=(64,320)",
        "--config.models=('a','b')",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    jobs = (tmp_path / "jobs.txt").read_text().splitlines()
    assert len(jobs) == 2
    assert f"--index={jobs[0]}" in done.stdout
    assert "of 352 points" in done.stdout
