"""launch/tpu_pod.sh uses slices that it did not create, and never deletes one."""

import re

import pytest


def label(create: list[str]) -> str:
    return next(flag for flag in create if flag.startswith("--labels=")).rpartition("=")[2]


def forget(cloud) -> None:
    (cloud.pods / cloud.name / "state").unlink()


@pytest.mark.parametrize(
    "made_by", ["queued-resources create", pytest.param("tpu-vm create", marks=pytest.mark.slow)]
)
def test_a_slice_of_others_is_used_and_left_as_it_was(cloud, made_by):
    cloud.put_request("ACTIVE") if made_by == "queued-resources create" else cloud.put_node()
    status, output = cloud.run(*cloud.arguments())
    assert status == 0, output
    assert "pod was not created by this launcher: it is used, and will not be deleted" in output
    assert "Left as it was found, and costing money: pod (v5p-16, us-east5-a)" in output
    assert cloud.steps() == [3, 6, 8]
    assert not cloud.calls("create")
    assert not cloud.calls("delete")

    status, output = cloud.run("delete", "pod")
    assert status == 1
    assert "pod is not deleted, for this launcher did not create it" in output
    assert not cloud.calls("delete")


def test_a_slice_of_others_that_is_preempted_ends_the_run(cloud):
    cloud.put_request("ACTIVE", owner="somebodyelse")
    cloud.wish("lose-slice", 0, step=5)
    status, output = cloud.run(*cloud.arguments())
    assert status == 2
    assert "request SUSPENDED, and was not created by this launcher" in output
    assert "delete it yourself" in output
    assert "--adopt=somebodyelse" in output
    assert not cloud.calls("delete")
    assert cloud.steps() == [3, 5]  # saved, for whatever comes next


def test_a_slice_of_its_own_is_used_again_and_deleted_in_the_end(cloud):
    status, output = cloud.run(*cloud.arguments("--keep"))
    assert status == 0, output
    assert "Kept, and costing money" in output
    assert cloud.request() is not None

    # More steps, and new code, which the workers get although they have an environment already.
    train = cloud.checkout / "launch" / "train.py"
    train.write_text(train.read_text().replace("saved step", "saved by new code: step"))
    cloud.commit()
    status, output = cloud.run(*cloud.arguments(steps=11))
    assert status == 0, output
    assert "saved by new code: step 11" in output
    assert cloud.steps() == [3, 6, 8, 9, 11]
    assert len(cloud.calls("create")) == 1
    assert len(cloud.calls("delete")) == 1
    assert cloud.request() is None

    # The same once more: nothing is left to do, and nothing is created for it.
    status, output = cloud.run(*cloud.arguments(steps=11))
    assert status == 0, output
    assert "Finished before" in output
    assert len(cloud.calls("create")) == 1


def test_what_the_launcher_has_forgotten_is_not_its_own_until_it_is_told(cloud):
    cloud.run(*cloud.arguments("--keep"))
    (create,) = cloud.calls("create")
    forget(cloud)
    where = ("--zone=us-east5-a", "--project=lab")

    status, output = cloud.run("delete", "pod", *where)
    assert status == 1
    assert f"--adopt={label(create)}" in output
    status, output = cloud.run("delete", "pod", *where, "--adopt=0000")
    assert status == 1
    assert not cloud.calls("delete")

    status, output = cloud.run("delete", "pod", *where, f"--adopt={label(create)}")
    assert status == 0, output
    assert cloud.request() is None

    # An identity is made up anew where none is known.
    forget(cloud)
    cloud.expect(create_failures=1)
    cloud.run(*cloud.arguments("--max-failures=1"))
    first, second = map(label, cloud.calls("create"))
    assert first != second
    assert re.fullmatch(r"[0-9a-f]{16}", second)


def test_another_type_is_refused(cloud):
    cloud.put_request("ACTIVE", accelerator="v5p-128")
    status, output = cloud.run(*cloud.arguments())
    assert status == 2
    assert "--type=v5p-16: pod exists as v5p-128" in output
    assert not cloud.workdir.exists()
