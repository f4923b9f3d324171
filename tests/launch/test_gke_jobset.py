"""launch/gke_jobset.yaml is what JobSet accepts, and means what it says."""

import copy
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads(Path(__file__).with_name("jobset_schema.json").read_text())


@pytest.fixture
def manifest():
    return yaml.safe_load((ROOT / "launch" / "gke_jobset.yaml").read_text())


def job_of(manifest):
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod_of(manifest):
    return job_of(manifest)["template"]["spec"]


def test_the_manifest_has_the_form_of_a_jobset(manifest):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(manifest, SCHEMA)


SPOILED = {
    "a field of nobody": lambda m: m["spec"].update(maxRestarts=3),
    "a misspelt field": lambda m: job_of(m).update(paralellism=3),
    "a number as text": lambda m: job_of(m).update(completions="16"),
    "an unknown action": lambda m: m["spec"]["failurePolicy"]["rules"][0].update(action="Restart"),
    "an unknown reason": lambda m: m["spec"]["failurePolicy"]["rules"][0].update(
        onJobFailureReasons=["Preempted"]
    ),
    "an exit code that is none": lambda m: job_of(m)["podFailurePolicy"]["rules"][0][
        "onExitCodes"
    ].update(values=[0]),
    "no image": lambda m: pod_of(m)["containers"][0].pop("image"),
    "a selector that is not text": lambda m: pod_of(m)["nodeSelector"].update(spot=True),
    "an old version": lambda m: m.update(apiVersion="jobset.x-k8s.io/v1alpha1"),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_the_schema_refuses(manifest, spoil):
    spoiled = copy.deepcopy(manifest)
    spoil(spoiled)
    assert spoiled != manifest
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(spoiled, SCHEMA)


def test_there_is_one_pod_for_every_host_of_the_slice(manifest):
    job, pod = job_of(manifest), pod_of(manifest)
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(map(int, topology.split("x")))
    limits = pod["containers"][0]["resources"]["limits"]
    assert job["parallelism"] == job["completions"] == chips // limits["google.com/tpu"]
    assert job["completionMode"] == "Indexed"


def test_a_preemption_restarts_and_an_error_is_counted(manifest, tmp_path):
    """An unfinished run is one exit code of ours; it and a lost node are one reason to JobSet."""
    job, pod = job_of(manifest), pod_of(manifest)
    unfinished = subprocess.run(
        [sys.executable, ROOT / "launch" / "progress.py", f"--workdir={tmp_path}"],
        env={"PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
    ).returncode
    by_exit_code, by_condition = job["podFailurePolicy"]["rules"]
    assert by_exit_code["onExitCodes"]["values"] == [unfinished]
    assert by_exit_code["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert by_condition["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert {by_exit_code["action"], by_condition["action"]} == {"FailJob"}
    (rule,) = manifest["spec"]["failurePolicy"]["rules"]
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    # Else the kubelet would restart a container before the Job sees its exit code.
    assert pod["restartPolicy"] == "Never"
    assert job["backoffLimit"] == 0


def test_the_container_runs_what_is_there(manifest):
    container = pod_of(manifest)["containers"][0]
    assert container["command"][0] == "bash"
    assert (ROOT / container["command"][1]).exists()
    config = next(a for a in container["args"] if a.startswith("--config="))
    path, _, name = config.removeprefix("--config=").partition(":")
    assert re.search(rf"\b{name}\b", (ROOT / "ldm_scaling" / "unet" / "family.py").read_text())
    assert (ROOT / path).exists()
    for file in re.findall(r"launch/[\w.]+", (ROOT / "launch" / "gke_jobset.yaml").read_text()):
        assert (ROOT / file).exists(), file
