import json
import logging
import time

import jax
import pytest

from ldm_scaling.records import read_records
from ldm_scaling.sharding import make_mesh
from ldm_scaling.train import loop
from ldm_scaling.train.goodput import PHASES, Goodput
from tests.train.toy import ToyBatches, ToyTask, toy_config


class Clock:
    def __init__(self, now=100.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def pass_by(clock, goodput, phase, seconds):
    with goodput.spent(phase):
        clock.now += seconds


def test_time_goes_where_it_is_spent_and_shares_add_up(clock):
    goodput = Goodput(clock, clock)
    clock.now += 5  # start
    with goodput.spent("step"):
        clock.now += 50
        pass_by(clock, goodput, "input", 8)
        with goodput.spent("evaluation"):
            clock.now += 3
            pass_by(clock, goodput, "compile", 20)  # of the evaluation's program
        clock.now += 10
        with goodput.saving(7):
            clock.now += 4
    seconds = goodput.seconds()
    expected = {"start": 5, "step": 60, "input": 8, "evaluation": 3, "compile": 20, "checkpoint": 4}
    assert seconds == {phase: expected.get(phase, 0) for phase in PHASES}
    assert sum(goodput.shares().values()) == pytest.approx(1)
    assert goodput.shares()["step"] == pytest.approx(0.6)
    assert goodput.blocked == 4


def test_a_phase_ends_where_an_error_leaves_it(clock):
    goodput = Goodput(clock, clock)

    def broken():
        with goodput.spent("step"), goodput.spent("input"):
            clock.now += 1
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    clock.now += 2
    assert (goodput.seconds()["input"], goodput.seconds()["start"]) == (1, 2)


def test_only_the_first_call_compiles(clock):
    goodput = Goodput(clock, clock)

    def work(x):
        clock.now += 3
        return x + 1

    counted = goodput.compiling(work)
    with goodput.spent("step"):
        assert [counted(1), counted(2)] == [2, 3]
    assert (goodput.seconds()["compile"], goodput.seconds()["step"]) == (3, 3)


def first_run(clock, file):
    """Saves after steps 10 and 20, is seen last at step 27, and dies a little later."""
    goodput = Goodput(clock, clock)
    for step in (10, 20):
        pass_by(clock, goodput, "step", 30)
        with goodput.saving(step):
            clock.now += 2
        goodput.write(file, step)
    pass_by(clock, goodput, "step", 21)
    goodput.write(file, 27)
    clock.now += 1000  # unknown to anybody; then the machine is away
    return goodput


def test_a_restart_counts_what_has_to_be_done_again(clock, tmp_path):
    first_run(clock, tmp_path / "progress.json")
    again = Goodput(clock, clock)
    clock.now += 6
    again.resume(tmp_path / "progress.json", 20)
    seconds = again.seconds()
    assert seconds["lost"] == 21
    assert (seconds["step"], seconds["checkpoint"], seconds["start"]) == (60, 4, 6)
    assert (again.lost_steps, again.restarts, again.down) == (7, 1, 1000)
    assert sum(again.shares().values()) == pytest.approx(1)


def test_an_older_checkpoint_loses_more(clock, tmp_path):
    """The newest was torn: all after the one before is lost, its save included."""
    first_run(clock, tmp_path / "progress.json")
    again = Goodput(clock, clock)
    again.resume(tmp_path / "progress.json", 10)
    assert again.seconds()["lost"] == 30 + 2 + 21
    assert again.seconds()["step"] == 30
    assert again.lost_steps == 17


def test_no_checkpoint_loses_everything(clock, tmp_path):
    first_run(clock, tmp_path / "progress.json")
    again = Goodput(clock, clock)
    again.resume(tmp_path / "progress.json", 0)
    assert again.seconds()["lost"] == 85
    assert again.lost_steps == 27


def test_a_run_that_ended_in_order_lost_nothing(clock, tmp_path):
    file = tmp_path / "progress.json"
    first = first_run(clock, file)
    with first.saving(30):
        clock.now += 1
    pass_by(clock, first, "export", 9)  # after the save, and still no loss
    first.write(file, 30)
    before = first.seconds()
    again = Goodput(clock, clock)
    again.resume(file, 30)
    assert again.seconds() == before
    assert (again.seconds()["lost"], again.lost_steps, again.restarts) == (0, 0, 1)


def test_losses_of_several_restarts_add_up(clock, tmp_path):
    file = tmp_path / "progress.json"
    first_run(clock, file)
    again = Goodput(clock, clock)
    again.resume(file, 20)
    pass_by(clock, again, "step", 12)
    again.write(file, 24)
    last = Goodput(clock, clock)
    last.resume(file, 20)
    assert last.seconds()["lost"] == 21 + 12
    assert (last.lost_steps, last.restarts, last.down) == (7 + 4, 2, 1000)


def test_a_save_that_nobody_noted_loses_nothing_known(clock, tmp_path):
    first_run(clock, tmp_path / "progress.json")
    again = Goodput(clock, clock)
    again.resume(tmp_path / "progress.json", 15)
    assert again.seconds()["lost"] == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seconds": 3}'])
def test_an_unreadable_note_is_said_and_ignored(clock, tmp_path, text, caplog):
    (tmp_path / "progress.json").write_text(text)
    goodput = Goodput(clock, clock)
    goodput.resume(tmp_path / "progress.json", 5)
    assert goodput.restarts == 0
    assert "progress.json is not readable" in caplog.text


def test_the_loop_tells_and_records_where_its_time_went(tmp_path, caplog):
    """Slow batches show as input, and what a stopped run did after its save as lost."""
    mesh = make_mesh(devices=jax.devices()[:1])
    slow = ToyBatches(on_step=lambda step: time.sleep(0.04))
    config = toy_config(num_steps=8, checkpoint_every=5, log_every=1, eval_every=4)
    began = time.monotonic()
    with caplog.at_level(logging.INFO):
        loop.run(config, tmp_path, mesh, ToyTask(), slow, ToyBatches())
    told = [message for message in caplog.messages if message.startswith("[8] goodput/")]
    assert "goodput/input=" in told[0]
    assert "goodput/step=" in told[0]
    wall = time.monotonic() - began
    records = [r for r in read_records(tmp_path / "training.jsonl") if r.kind == "goodput"]
    assert sorted(r.point["step"] for r in records) == [5, 8]
    last = max(records, key=lambda r: r.point["step"])
    shares = {name.removeprefix("share_"): m.value for name, m in last.metrics.items()}
    assert set(shares) == set(PHASES)
    assert sum(shares.values()) == pytest.approx(1)
    assert 0.9 * wall < last.costs["seconds"] < wall
    assert 8 * 0.04 <= shares["input"] * last.costs["seconds"] < 8 * 0.04 + 0.4
    assert min(shares[phase] for phase in ("step", "compile", "checkpoint", "evaluation")) > 0
    assert last.costs["checkpoint_blocked_seconds"] > 0

    # As if it had died after step 8, with the checkpoint of step 5.
    progress = json.loads((tmp_path / "progress.json").read_text())
    lost = sum(progress["seconds"].values()) - sum(progress["saves"]["5"].values())
    (tmp_path / "checkpoints" / "8" / "integrity.json").unlink()
    loop.run(config, tmp_path, mesh, ToyTask(), ToyBatches(), ToyBatches())
    found = [r for r in read_records(tmp_path / "training.jsonl") if r.kind == "goodput"]
    last = max(found, key=lambda r: r.point["step"])
    assert last.metrics["share_lost"].value * last.costs["seconds"] == pytest.approx(lost, rel=1e-3)
    assert (last.costs["lost_steps"], last.costs["restarts"]) == (3, 1)
