"""Text-to-image training by `launch/train.py` in several processes, as a user starts it."""

import json

import numpy as np
import pytest
from PIL import Image
from processes import ROOT, Processes

from ldm_scaling.checkpoint.diffusers import import_unet
from ldm_scaling.records import read_records

pytestmark = pytest.mark.slow

# The time of this test is that of compiling, several times on two cores.
COMPILE_FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    """A folder of 24 captioned images."""
    folder = tmp_path_factory.mktemp("discs")
    rng, lines = np.random.default_rng(0), []
    y, x = np.mgrid[:64, :64]
    for i in range(24):
        image = np.full((64, 64, 3), 255, np.uint8)
        image[np.hypot(y - rng.integers(20, 44), x - rng.integers(20, 44)) < 16] = rng.integers(
            0, 256, 3
        )
        Image.fromarray(image).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"disc {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def train(logs, workdir, discs, count, devices, **changes):
    fields = {
        "data.name": discs,
        "data.validation_split": "all",
        "batch_size": 8,
        "num_steps": 4,
        "log_every": 1,
        "eval_every": 4,
        "eval_batches": 1,
        "checkpoint_every": 2,
        "export_steps": "()",
        "optimizer.warmup_steps": 1,
        "optimizer.decay_steps": 6,
        **changes,
    }
    command = [
        ROOT / "launch" / "train.py",
        f"--config={ROOT}/configs/pretrain.py:micro-8",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]
    run = Processes(logs, count, devices, {}, command=command, xla_flags=COMPILE_FAST)
    with run as processes:
        processes.finish()
        return [processes.log(index) for index in range(count)]


def losses(workdir):
    records = [r for r in read_records(workdir / "training.jsonl") if r.kind == "training"]
    return {
        (r.point["step"], r.protocol.get("split", "")): r.metrics["loss"].value for r in records
    }


@pytest.mark.parametrize("cache", [True, False])
def test_two_processes_train_what_one_trains(discs, tmp_path, cache):
    """Encoded ahead, and with both encoders in the step; then goes on in one process."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    train(tmp_path / "logs1", alone, discs, 1, 2, cache=cache)
    logs = train(tmp_path / "logs2", together, discs, 2, 1, cache=cache)
    expected = losses(alone)
    assert set(expected) == {(1, ""), (2, ""), (3, ""), (4, ""), (4, "validation")}
    assert losses(together) == pytest.approx(expected, rel=1e-5)
    assert "[1/2] " in logs[1]
    cached = sorted(path.parent.name for path in together.glob("cache/*/*.array_record-*"))
    assert cached == (["all", "train"] if cache else [])
    exports = [run / "export" / "final" / "unet" for run in (alone, together)]
    assert import_unet(exports[0])[0] == import_unet(exports[1])[0]
    assert list(together.glob("compiled/jit_step-*"))

    train(tmp_path / "logs3", together, discs, 1, 2, cache=cache, num_steps=6)
    train(tmp_path / "logs4", alone, discs, 1, 2, cache=cache, num_steps=6)
    assert losses(together) == pytest.approx(losses(alone), rel=1e-5)


def test_a_folder_that_is_not_shared_is_refused(discs, tmp_path):
    command = [
        ROOT / "launch" / "train.py",
        f"--config={ROOT}/configs/pretrain.py:micro-8",
        f"--config.data.name={discs}",
    ]
    own_flags = [[f"--workdir={tmp_path}/{index}"] for index in range(2)]
    with Processes(tmp_path, 2, 1, {}, command=command, own_flags=own_flags) as processes:
        assert processes.codes() == [1, 1]
        for index in range(2):
            assert "not every process finds there what the first has written" in processes.log(
                index
            )


def test_configs_that_differ_are_refused(discs, tmp_path):
    command = [
        ROOT / "launch" / "train.py",
        f"--config={ROOT}/configs/pretrain.py:micro-8",
        f"--config.data.name={discs}",
        f"--workdir={tmp_path}/run",
    ]
    own_flags = [[], ["--config.seed=1"]]
    with Processes(tmp_path, 2, 1, {}, command=command, own_flags=own_flags) as processes:
        assert processes.codes() == [1, 1]
        assert "the config of processes [1] differs from that of process 0" in processes.log(0)
    assert not (tmp_path / "run").exists()
