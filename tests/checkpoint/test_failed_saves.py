"""Torn checkpoints, full disks, killed saves: the one before is there and is used."""

import logging as python_logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from ldm_scaling.checkpoint import integrity
from ldm_scaling.checkpoint.state import CheckpointError, Checkpoints
from tests.checkpoint.states import abstract, bits, files_of, make_state, save_steps


@pytest.mark.parametrize("damage", ["delete", "truncate", "zero"])
def test_any_damaged_file_is_noticed(copy_of_two, damage):
    newest = copy_of_two / "20"
    names = files_of(newest)
    assert any(name.startswith("state/") for name in names)
    for name in names:
        path = newest / name
        content = path.read_bytes()
        if damage == "delete":
            path.unlink()
        elif damage == "truncate":
            path.write_bytes(content[: len(content) // 2])
        else:
            path.write_bytes(bytes(len(content)))
        # Orbax writes this one last; that it is there is all that it says.
        if name != "commit_success.txt" or damage == "delete":
            assert integrity.find_damage(epath.Path(newest)), name
        path.write_bytes(content)
    assert integrity.find_damage(epath.Path(newest)) is None


def test_torn_newest_is_skipped_said_and_set_aside(copy_of_two, caplog):
    files = [p for p in (copy_of_two / "20" / "state").rglob("*") if p.is_file()]
    data = max(files, key=lambda p: p.stat().st_size)
    data.write_bytes(data.read_bytes()[:-7])
    with Checkpoints(copy_of_two, keep=2) as checkpoints:
        with caplog.at_level(python_logging.WARNING):
            step, state, _ = checkpoints.restore_latest(abstract(make_state(0)))
        assert step == 10
        assert bits(state) == bits(make_state(10))
        assert str(copy_of_two / "20") in caplog.text
        assert data.name in caplog.text
        # The run comes past step 20 again; the torn one neither blocks it nor counts as kept.
        checkpoints.save(15, make_state(15), {})
        checkpoints.save(20, make_state(20), {})
        checkpoints.wait()
        assert checkpoints.steps() == [15, 20]
        assert checkpoints.restore_latest(abstract(make_state(0)))[0] == 20
    assert (copy_of_two / "20.torn").exists()


def test_all_torn_is_an_error_that_names_them(copy_of_two):
    for step in ("10", "20"):
        (copy_of_two / step / "meta" / "metadata").unlink()
    with pytest.raises(
        CheckpointError, match=r"20 is not whole: meta/metadata[^\0]*10 is not whole"
    ):
        Checkpoints(copy_of_two).restore_latest(abstract(make_state(0)))


def test_failing_manifest_fails_the_save(copy_of_two, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    checkpoints = Checkpoints(copy_of_two, keep=1)
    monkeypatch.setattr(integrity, "write_manifest", full)
    checkpoints.save(30, make_state(30), {})
    with pytest.raises(CheckpointError, match=r"step 30 could not .*\[10, 20\].*No space left"):
        checkpoints.wait()
    monkeypatch.undo()
    assert files_of(copy_of_two)  # nothing was lost ...
    assert not list(copy_of_two.glob("*tmp*"))  # ... nothing half written stays
    checkpoints.save(30, make_state(30), {})  # and the next one works
    checkpoints.close()
    assert Checkpoints(copy_of_two).steps() == [30]


# A real full disk and a real kill, each in a process of its own: the file size limit stands for
# the disk, because a test may not fill one.
CHILD = """
    import os, resource, signal, sys, time
    sys.path[:0] = [{repo!r}]
    import numpy as np
    from ldm_scaling.checkpoint import integrity
    from ldm_scaling.checkpoint.state import CheckpointError, Checkpoints

    folder, mode = sys.argv[1:]
    checkpoints = Checkpoints(folder, keep=1)
    big = {{"w": np.random.default_rng(0).normal(size=(400, 1000))}}
    checkpoints.save(1, big, {{"at": 1}})
    checkpoints.wait()
    if mode == "full":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            checkpoints.save(2, big, {{"at": 2}})
            checkpoints.wait()
        except CheckpointError as error:
            print("ERROR", error)
    else:
        write = integrity.write_manifest
        integrity.write_manifest = lambda path: (write(path), os.kill(os.getpid(), signal.SIGKILL))
        checkpoints.save(2, big, {{"at": 2}})
        checkpoints.wait()
"""


@pytest.mark.parametrize("mode", ["full", "kill"])
def test_failed_save_leaves_the_previous_one(tmp_path, mode):
    repo = str(Path(__file__).parents[2])
    child = textwrap.dedent(CHILD.format(repo=repo))
    done = subprocess.run(
        [sys.executable, "-c", child, str(tmp_path), mode],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_FLAGS": ""},
    )
    if mode == "full":
        assert done.returncode == 0, done.stderr
        assert "ERROR step 2 could not be saved" in done.stdout
        assert "untouched: [1]" in done.stdout
        assert "File too large" in done.stdout
        assert files_of(tmp_path)
    else:
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert list(tmp_path.glob("2.orbax*"))  # killed in the middle of the save
    target = {"w": np.zeros((400, 1000))}
    with Checkpoints(tmp_path) as checkpoints:
        step, state, meta = checkpoints.restore_latest(target)
        assert (step, meta) == (1, {"at": 1})
        expected = np.random.default_rng(0).normal(size=(400, 1000))
        assert np.array_equal(np.asarray(state["w"]), expected)
        checkpoints.save(2, target, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_manifest_is_written_before_the_commit(tmp_path, monkeypatch):
    """Else a run killed between the two would leave a checkpoint that nobody can vouch for."""
    seen = []
    write = integrity.write_manifest
    monkeypatch.setattr(
        integrity, "write_manifest", lambda folder: (seen.append(folder.name), write(folder))
    )
    save_steps(tmp_path, 4)
    assert seen == ["4" + ocp.path.atomicity.TMP_DIR_SUFFIX]
