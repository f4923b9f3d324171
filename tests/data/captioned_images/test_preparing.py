"""From a source to a set that `open_source` opens, on Beam's local runner."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ldm_scaling.data import DataError, open_source
from ldm_scaling.data.captioned_images import Rules, prepare, webdataset, writing
from ldm_scaling.data.images import decode_rgb
from ldm_scaling.data.splitting import in_test
from tests.data.captioned_images.sources import jpeg, samples

ROOT = Path(__file__).parents[3]


@pytest.fixture
def source(write_tar):
    """Three tars of twelve examples with a little of everything that can be wrong."""
    for number in range(3):
        members = list(samples([f"{number}{i:02d}" for i in range(12)]))
        members += samples([f"small{number}"], size=(16, 20))
        if number == 0:
            members += [("broken.jpg", jpeg()[:-200]), ("broken.txt", b"caption")]
        if number == 2:
            members += [*samples(["005"]), ("../evil.jpg", b"")]  # 005 is in the first tar
        path = write_tar(members, f"{number:05d}.tar")
    return path.parent


RULES = Rules(min_side=30, test_share=0.25)
ANY_SIZE = Rules(test_share=0.25)
BAD = {"broken image": 1, "duplicate key": 1, "unsafe name": 1}


def examples(folder):
    found = {}
    for split in ("train", "test"):
        prepared = open_source(folder, split)
        for i in range(len(prepared)):
            found[prepared[i]["key"]] = {**prepared[i], "split": split}
    return found


def files(folder):
    return {
        path.name: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".json"
    }


def test_what_is_prepared_is_opened_without_options(source, tmp_path):
    output = tmp_path / "out"
    report = prepare(source, output, RULES, max_bad_share=0.1)
    assert dict(report.dropped) == {**BAD, "small": 3}
    assert report.kept.total() == 36
    found = examples(output)
    assert sorted(found) == sorted(f"{number}{i:02d}" for number in range(3) for i in range(12))
    example = found["105"]
    assert example["caption"] == "picture 105"
    assert example["captions"] == ["picture 105"]
    original = dict(samples([f"1{i:02d}" for i in range(12)]))["105.jpg"]
    np.testing.assert_array_equal(example["image"], decode_rgb(original))
    for example in found.values():
        assert (example["split"] == "test") == in_test(example["group"], 0.25)
    assert {example["split"] for example in found.values()} == {"train", "test"}
    assert not list(tmp_path.glob("*.partial"))


def test_the_report_lies_beside_the_data(source, tmp_path):
    prepare(source, tmp_path / "out", RULES, max_bad_share=0.1)
    report = json.loads((tmp_path / "out" / "1.0.0" / "report.json").read_text())
    assert report["dropped"] == {**BAD, "small": 3}
    assert report["named"]["duplicate key"] == ["00002.tar: 005"]
    assert report["named"]["unsafe name"] == ["00002.tar: ../evil.jpg"]
    assert report["named"]["small"][0] == "00000.tar: small0: 16x20"
    assert report["rules"]["min_side"] == 30


def test_ids_are_places_in_the_source_whatever_is_dropped(source, tmp_path):
    prepare(source, tmp_path / "all", ANY_SIZE, max_bad_share=0.1)
    prepare(source, tmp_path / "some", RULES, max_bad_share=0.1)
    everything, some = examples(tmp_path / "all"), examples(tmp_path / "some")
    assert len(everything) == len(some) + 3
    assert all(some[key]["example_id"] == everything[key]["example_id"] for key in some)
    # The broken one and the one too small have their places, too; the unsafe name has none.
    assert [some[key]["example_id"] for key in ("000", "011", "100", "211")] == [0, 11, 14, 38]
    assert everything["small2"]["example_id"] == 39


@pytest.mark.parametrize(
    "options",
    [
        {"beam_options": ["--direct_num_workers=3", "--direct_running_mode=multi_threading"]},
        pytest.param({"workers": 2}, marks=pytest.mark.slow),  # processes take long to start
    ],
)
def test_workers_change_no_byte(source, tmp_path, options):
    prepare(source, tmp_path / "one", RULES, max_bad_share=0.1)
    prepare(source, tmp_path / "more", RULES, max_bad_share=0.1, **options)
    assert files(tmp_path / "one") == files(tmp_path / "more")
    reports = [tmp_path / name / "1.0.0" / "report.json" for name in ("one", "more")]
    assert reports[0].read_text() == reports[1].read_text()


def test_an_interrupted_call_goes_on(source, tmp_path, monkeypatch):
    prepare(source, tmp_path / "whole", RULES, max_bad_share=0.1)
    read = []
    entries = webdataset.TarShard.entries

    def failing(shard):
        read.append(shard.name)
        if shard.name == "00001.tar":
            yield next(entries(shard))
            raise MemoryError("the machine has gone")
        yield from entries(shard)

    with monkeypatch.context() as patched:
        patched.setattr(webdataset.TarShard, "entries", failing)
        with pytest.raises(Exception, match="the machine has gone"):
            prepare(source, tmp_path / "out", RULES, max_bad_share=0.1)
    assert not (tmp_path / "out").exists()
    done = {name for name in read if name != "00001.tar"}
    read.clear()

    def counted(shard):
        read.append(shard.name)
        return entries(shard)

    monkeypatch.setattr(webdataset.TarShard, "entries", counted)
    prepare(source, tmp_path / "out", RULES, max_bad_share=0.1)
    assert set(read) == {f"0000{i}.tar" for i in range(3)} - done
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_too_much_that_is_bad_is_fatal_and_can_be_allowed_later(source, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"3 of 42 entries are bad.*max_bad_share=0.01"):
        prepare(source, tmp_path / "out", RULES)
    assert not (tmp_path / "out").exists()
    report = json.loads((tmp_path / "out.partial" / "report.json").read_text())
    assert report["dropped"]["broken image"] == 1

    monkeypatch.setattr(Rules, "apply", None)  # nothing is looked at again
    prepare(source, tmp_path / "out", RULES, max_bad_share=0.1)
    assert len(examples(tmp_path / "out")) == 36


def test_other_rules_do_not_go_on_from_there(source, tmp_path):
    with pytest.raises(DataError):
        prepare(source, tmp_path / "out", RULES)
    prepare(source, tmp_path / "out", ANY_SIZE, max_bad_share=0.1)
    assert len(examples(tmp_path / "out")) == 39


def test_a_shard_whose_file_was_lost_or_cut_is_written_again(source, tmp_path):
    prepare(source, tmp_path / "whole", RULES, max_bad_share=0.1)
    with pytest.raises(DataError):
        prepare(source, tmp_path / "out", RULES)
    writing.shard_file(tmp_path / "out.partial", "train", 0).unlink()
    os.truncate(writing.shard_file(tmp_path / "out.partial", "train", 1), 100)
    prepare(source, tmp_path / "out", RULES, max_bad_share=0.1)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_images_made_smaller_are_the_only_ones_encoded_anew(write_tar, tmp_path):
    large, small = jpeg(1, size=(60, 45)), jpeg(2, size=(30, 20))
    members = [("a.jpg", large), ("a.txt", b"large"), ("b.jpg", small), ("b.txt", b"small")]
    folder = write_tar(members).parent
    prepare(folder, tmp_path / "out", Rules(max_side=30, test_share=0.0))
    found = examples_of_train(tmp_path / "out")
    assert found["a"]["image"].shape == (30, 40, 3)
    np.testing.assert_array_equal(found["b"]["image"], decode_rgb(small))


def examples_of_train(folder):
    prepared = open_source(folder)
    return {prepared[i]["key"]: prepared[i] for i in range(len(prepared))}


def test_the_source_may_decide_the_split(tmp_path):
    """COCO's validation images are the test set, and an image has all its captions."""
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    for part in ("train2017", "val2017"):
        (folder / part).mkdir()
        (folder / part / f"{part}.jpg").write_bytes(jpeg())
        notes = [{"image_id": 1, "caption": caption} for caption in ("first", "second")]
        content = {"images": [{"id": 1, "file_name": f"{part}.jpg"}], "annotations": notes}
        (folder / "annotations" / f"captions_{part}.json").write_text(json.dumps(content))
    prepare(folder, tmp_path / "out")
    found = examples(tmp_path / "out")
    assert {key: example["split"] for key, example in found.items()} == {
        "train2017.jpg": "train",
        "val2017.jpg": "test",
    }
    assert found["val2017.jpg"]["captions"] == ["first", "second"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "gone"}, "source='gone': no such folder"),
        ({"source": "."}, "source='.', kind='auto': nothing there; webdataset needs"),
        ({"kind": "parquet"}, "kind='parquet': nothing there"),
        ({"kind": "coko"}, "kind='coko': did you mean 'coco'"),
        ({"output": "source"}, "output='source': is there already"),
        ({"max_bad_share": 1.5}, "max_bad_share=1.5: a share"),
        ({"workers": 0}, "workers=0"),
    ],
)
def test_bad_requests_are_named(source, tmp_path, monkeypatch, options, message):
    (tmp_path / "empty").mkdir()
    if options.get("source") == ".":
        monkeypatch.chdir(tmp_path / "empty")
    else:
        monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        prepare(**{"source": "source", "output": "out", **options})


def test_a_folder_in_the_way_is_not_deleted(source, tmp_path):
    precious = tmp_path / "out.partial" / "precious"
    precious.parent.mkdir()
    precious.touch()
    with pytest.raises(DataError, match=r"out.partial: in the way"):
        prepare(source, tmp_path / "out")
    assert precious.exists()


def test_without_beam_it_says_what_to_install(source, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "apache_beam"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "ldm_scaling.data.captioned_images.builder", raising=False)
    with pytest.raises(ImportError, match=r'-e "\.\[data\]"'):
        prepare(source, tmp_path / "out")


@pytest.mark.slow
def test_the_command(source, tmp_path):
    command = [sys.executable, ROOT / "launch" / "prepare_data.py", f"--source={source}"]
    command += [f"--output={tmp_path / 'out'}", "--min_side=30", "--workers=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    refused = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("prepare_data: 3 of 42 entries are bad")
    allowed = [*command, "--max_bad_share=0.1"]
    done = subprocess.run(allowed, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "kept      train" in done.stderr
    assert len(open_source(tmp_path / "out", "all")) == 36
    taught = subprocess.run([*command[:2], "--help"], capture_output=True, text=True)
    assert "--max_bad_share" in taught.stdout
    assert "webdataset  folder of tars" in taught.stdout
