"""launch/tpu_pod.sh against a made-up gcloud (see cloud.py): one run, and what befalls it."""

import os
import signal

import pytest


def test_from_nothing_to_records(cloud):
    cloud.expect(polls_in_queue=2)
    status, output = cloud.run(*cloud.arguments("--spot", extra="it's a (name)"))
    assert status == 0, output
    assert "WAITING_FOR_RESOURCES" in output
    (create,) = cloud.calls("create")
    assert {"--spot", "--accelerator-type=v5p-16", "--runtime-version=v2-alpha-tpuv5"} <= {*create}
    # Training got its arguments as they were given, and its log was shown and kept, whole.
    log = cloud.log().splitlines()
    assert log == [
        "going on from step 0 it's a (name)",
        *(f"step {i}" for i in range(1, 9)),
        log[-1],
    ]
    assert log[-1] == "saved step 8"
    assert cloud.log() in output
    # Records are here; nothing is left that runs or costs money.
    assert cloud.steps() == [3, 6, 8]
    records = cloud.pods / "pod" / "training.jsonl"
    assert records.read_text() == (cloud.workdir / "training.jsonl").read_text()
    assert cloud.request() is None
    cloud.wait_for(lambda: cloud.on_workers() == cloud.at_home() == [], "all processes to end")


@pytest.mark.slow
def test_a_bucket_as_workdir(cloud):
    network = ("--create-flag=--network=lab", "--ssh-flag=--internal-ip")
    status, output = cloud.run(*cloud.arguments("--reserved", *network, workdir="gs://bucket/run/"))
    assert status == 0, output
    assert cloud.calls("create", "--reserved", "--network=lab")
    assert cloud.calls("scp", "--internal-ip")
    assert all("--internal-ip" in call for call in cloud.calls("ssh"))
    assert (cloud.pods / "pod" / "training.jsonl").read_text().count("step") == 3


def test_creation_that_fails_is_tried_again(cloud):
    cloud.expect(create_failures=2, request_failures=1)
    status, output = cloud.run(*cloud.arguments())
    assert status == 0, output
    assert output.count("RESOURCE_EXHAUSTED: no more capacity.") == 2
    assert "The request for pod failed (failure 3 of 5)" in output
    assert len(cloud.calls("create")) == 4
    assert len(cloud.calls("delete")) == 2  # the failed request, and the slice in the end
    assert cloud.steps() == [3, 6, 8]


def test_creation_that_keeps_failing_is_given_up(cloud):
    cloud.expect(create_failures=9)
    status, output = cloud.run(*cloud.arguments("--max-failures=2"))
    assert status == 1
    assert len(cloud.calls("create")) == 2
    assert "Giving up after 2 failures in a row" in output


def test_creation_that_is_refused_is_not_tried_again(cloud):
    cloud.expect(create_failures=9, create_message="PERMISSION_DENIED: ask your administrator")
    status, output = cloud.run(*cloud.arguments())
    assert status == 2
    assert len(cloud.calls("create")) == 1
    assert "PERMISSION_DENIED: ask your administrator" in output


def test_a_preempted_run_goes_on_in_a_new_slice(cloud):
    cloud.wish("lose-slice", 0, step=5)
    status, output = cloud.run(*cloud.arguments("--spot", "--max-failures=1"))
    assert status == 0, output
    assert "Preempted" in output
    assert len(cloud.calls("create")) == 2
    assert len(cloud.calls("delete")) == 2
    assert cloud.steps() == [3, 5, 6, 8]  # saved when the slice was taken away, and no step twice
    assert "going on from step 5" in cloud.log()
    assert "failure" not in output


def test_a_worker_whose_installation_fails_is_named(cloud):
    cloud.wish("broken-install", 1)
    launcher = cloud.start(*cloud.arguments("--max-failures=9"))
    said = ""
    for line in launcher.stdout:
        said += line
        if "installation failed" in line:
            break
    cloud.unwish("broken-install", 1)  # as a registry that answers again
    said += launcher.communicate(timeout=60)[0]
    assert launcher.returncode == 0, said
    assert "Installation failed on worker 1 (failure 1 of 9)" in said
    assert "t1v-n-pod-w-1: ERROR: No matching distribution found for jax[tpu]" in said
    assert "w-0: ERROR" not in said
    assert cloud.steps() == [3, 6, 8]


@pytest.mark.slow
def test_an_installation_that_keeps_failing_ends_the_costs(cloud):
    cloud.wish("broken-install", 1)
    status, output = cloud.run(*cloud.arguments("--max-failures=2"))
    assert status == 1
    assert output.count("Installation failed on worker 1") == 2
    assert cloud.request() is None
    assert not cloud.workdir.exists()


@pytest.mark.slow
def test_crashes_with_new_steps_between_them_are_forgiven(cloud):
    cloud.wish("crash-once", 0, step=5)
    cloud.wish("crash-once", 1, step=8)
    status, output = cloud.run(*cloud.arguments("--max-failures=2", steps=9))
    assert status == 0, output
    assert output.count("(failure 1 of 2)") == 2
    # The worker that ended first is the one to look at.
    assert "first on worker 0:" in output
    assert "RuntimeError: a bug in step 5" in output
    assert "first on worker 1:" in output
    assert "RuntimeError: a bug in step 8" in output
    assert cloud.steps() == [3, 6, 9]
    assert len(cloud.calls("create")) == 1


def test_a_run_that_cannot_go_on_is_given_up(cloud):
    status, output = cloud.run(*cloud.arguments("--max-failures=2", steps=0))
    assert status == 1
    assert "train: num_steps=0: must be at least 1" in output
    assert output.count("Training ended with an error (failure") == 2
    assert cloud.request() is None
    cloud.wait_for(lambda: cloud.at_home() == [], "the launcher to leave nothing")


def test_workers_need_not_end_at_once(cloud):
    cloud.wish("wait", 1, step=8)
    launcher = cloud.start(*cloud.arguments("--max-failures=1"))
    cloud.wait_for(lambda: "saved step 8" in cloud.log(), "the end on worker 0")
    cloud.unwish("wait", 1)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, output
    assert "Ending training" not in output


@pytest.mark.slow
def test_a_worker_that_does_not_end_is_made_to(cloud):
    cloud.wish("wait", 1, step=8)
    status, output = cloud.run(*cloud.arguments())
    assert status == 0, output
    assert "Ending training where it still runs" in output
    assert cloud.steps() == [3, 6, 8]
    cloud.wait_for(lambda: cloud.on_workers() == [], "the workers to be quiet")


@pytest.mark.slow
def test_a_power_cut_is_survived(cloud):
    cloud.wish("wait", 0, step=5)
    launcher = cloud.start(*cloud.arguments())
    cloud.wait_for(lambda: "step 5" in cloud.log(), "step 5")
    cloud.unwish("wait", 0)
    cloud.power_cut()
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, output
    assert "(failure 1 of 5)" in output
    assert cloud.steps() == [3, 6, 8]
    assert len(cloud.calls("create")) == 1


@pytest.mark.slow
def test_workers_that_do_not_answer_are_replaced(cloud):
    cloud.expect(no_ssh=2)
    status, output = cloud.run(*cloud.arguments())
    assert status == 0, output
    assert output.count("The workers do not answer") == 2
    assert "A host may be dead" in output
    assert len(cloud.calls("create")) == 2
    assert cloud.steps() == [3, 6, 8]


@pytest.mark.slow
def test_lost_connections_lose_neither_the_run_nor_a_line_of_its_log(cloud):
    cloud.wish("wait", 0, step=5)
    launcher = cloud.start(*cloud.arguments())
    cloud.wait_for(lambda: "step 5" in cloud.log(), "step 5")
    cloud.expect(no_network=9)
    for pid in cloud.pids_at_home("follow"):
        os.kill(pid, signal.SIGTERM)
    cloud.wait_for(lambda: cloud.scenario("no_network") == 0, "the network to come back")
    cloud.unwish("wait", 0)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, output
    steps = [line for line in cloud.log().splitlines() if line.startswith("step")]
    assert steps == [f"step {i}" for i in range(1, 9)]
    assert cloud.log() in output
    assert len(cloud.calls("create")) == 1


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_launcher_leaves_training_alone_and_finds_it_again(cloud, number):
    cloud.wish("wait", 0, step=5)
    launcher = cloud.start(*cloud.arguments())
    cloud.wait_for(lambda: "step 5" in cloud.log(), "step 5")
    if number == signal.SIGTERM:
        os.kill(launcher.pid, number)
    else:
        os.killpg(launcher.pid, number)  # as a terminal does at Ctrl-C, or when memory runs out
    if number == signal.SIGKILL:
        launcher.wait(timeout=10)
    else:
        output = "".join(launcher.stdout)
        assert launcher.wait(timeout=10) == 128 + number
        assert "Still there, and costing money until it is deleted: pod (v5p-16, us-" in output
        assert "Training goes on on its workers." in output
        assert "bash launch/tpu_pod.sh delete pod" in output
        cloud.wait_for(lambda: cloud.at_home() == [], "the launcher to leave nothing")
    assert any("train.py" in line for line in cloud.on_workers())

    launcher = cloud.start(*cloud.arguments())
    cloud.wait_for(lambda: len(cloud.calls_of("follow")) == 2, "the log to be followed again")
    cloud.unwish("wait", 0)
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, output
    assert "Training runs already" in output
    assert cloud.steps() == [3, 6, 8]
    steps = [line for line in cloud.log().splitlines() if line.startswith("step")]
    assert steps == [f"step {i}" for i in range(1, 9)]
    assert len(cloud.calls("create")) == 1
    assert cloud.request() is None
    cloud.wait_for(lambda: cloud.at_home() == [], "the launcher to leave nothing")


@pytest.mark.slow
def test_what_ended_while_nobody_watched_is_not_trained_again(cloud):
    cloud.wish("wait", 0, step=5)
    launcher = cloud.start(*cloud.arguments())
    cloud.wait_for(lambda: "step 5" in cloud.log(), "step 5")
    os.killpg(launcher.pid, signal.SIGINT)
    launcher.wait(timeout=10)
    cloud.unwish("wait", 0)
    cloud.wait_for(lambda: not cloud.on_workers(), "the end of training")
    status, output = cloud.run(*cloud.arguments())
    assert status == 0, output
    assert "Installing" not in output
    assert "saved step 8" in output
    assert cloud.steps() == [3, 6, 8]
    assert cloud.request() is None


def test_an_interruption_in_the_queue_says_that_it_will_cost_money(cloud):
    cloud.expect(polls_in_queue=10**6)
    launcher = cloud.start(*cloud.arguments())
    cloud.wait_for(lambda: len(cloud.calls("describe")) > 5, "the queue to be watched")
    os.killpg(launcher.pid, signal.SIGINT)
    output = "".join(launcher.stdout)
    assert launcher.wait(timeout=10) == 130
    assert "Still asked for, and costing money once it is granted: pod (v5p-16, us-" in output
    assert "request WAITING_FOR_RESOURCES" in output
    assert "Training goes on" not in output
    assert cloud.request() is not None
