"""Images drawn into a folder: each once, the same whatever stopped, split or batched the work."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from ldm_scaling.data import open_source
from ldm_scaling.evaluation.captions import Caption
from ldm_scaling.evaluation.folder import draw_folder
from ldm_scaling.evaluation.generate import Generator
from ldm_scaling.sharding import make_mesh
from tests.evaluation.conftest import HashedText

CAPTIONS = [Caption(id, f"caption {id}") for id in (5, 3, 11, 8, 2, 900_000, 7)]
SETTINGS = {"steps": 2, "guidance": 2.0, "progress": False}


@pytest.fixture(scope="module")
def model(tiny_model):
    card = dataclasses.replace(tiny_model.card, weights_hash="one")
    return dataclasses.replace(tiny_model, card=card, text_encoder=HashedText())


@pytest.fixture(scope="module")
def generator(model):
    return Generator(model, batch_size=2)


def images(folder):
    return {path.name: np.asarray(Image.open(path)) for path in folder.glob("*.png")}


@pytest.fixture(scope="module")
def drawn(generator, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    assert draw_folder(generator, CAPTIONS, folder, **SETTINGS) == 7
    return folder


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert np.abs(one[name].astype(int) - other[name]).max() <= 1


def test_an_image_a_caption_named_by_its_id(drawn):
    found = images(drawn)
    assert sorted(found) == [f"{id:012d}.png" for id in sorted(c.id for c in CAPTIONS)]
    assert len({image.tobytes() for image in found.values()}) == 7
    lines = [json.loads(line) for line in (drawn / "metadata.jsonl").read_text().splitlines()]
    assert [line["caption"] for line in lines] == [caption.text for caption in CAPTIONS]
    assert lines[2] == {"file_name": "000000000011.png", "caption": "caption 11", "id": 11}


def test_finished_images_are_not_drawn_again(generator, drawn, tmp_path):
    folder = tmp_path / "again"
    assert draw_folder(generator, CAPTIONS, folder, **SETTINGS) == 7
    lost = [folder / "000000000008.png", folder / "000000900000.png"]
    kept = (folder / "000000000003.png").stat().st_mtime_ns
    for path in lost:
        path.unlink()
    (folder / ".000000000008.png.1.partial").write_bytes(b"torn")  # of a process that was killed
    assert draw_folder(generator, CAPTIONS, folder, **SETTINGS) == 2
    assert (folder / "000000000003.png").stat().st_mtime_ns == kept
    assert_close(images(folder), images(drawn))
    assert draw_folder(generator, CAPTIONS, folder, **SETTINGS) == 0


def test_jobs_of_an_array_and_devices_give_the_same_images(model, drawn, tmp_path):
    many = Generator(model, batch_size=8, mesh=make_mesh(replica=-1, fsdp=1, tensor=1))
    assert len(jax.devices()) == 8
    for index, count in ((1, 3), (0, 4)):
        assert draw_folder(many, CAPTIONS, tmp_path, index=index, of=2, **SETTINGS) == count
    assert_close(images(tmp_path), images(drawn))


def test_it_is_a_folder_that_the_library_reads(drawn, tmp_path):
    (tmp_path / "test").symlink_to(drawn)
    source = open_source(str(tmp_path), "test")
    assert len(source) == 7
    assert source[0]["caption"] == "caption 5"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 3}, "steps=2 there, 3 here"),
        ({"guidance": 3.0}, "guidance=2.0 there, 3.0 here"),
        ({"seed": 1}, "seed=0 there, 1 here"),
        ({"sampler": "ddpm"}, "sampler='ddim' there, 'ddpm' here"),
    ],
)
def test_images_drawn_in_another_way_are_not_mixed(generator, drawn, change, message):
    with pytest.raises(ValueError, match=message):
        draw_folder(generator, CAPTIONS, drawn, **{**SETTINGS, **change})


def test_neither_with_other_weights_or_captions(model, generator, drawn):
    other = dataclasses.replace(model, card=dataclasses.replace(model.card, weights_hash="two"))
    with pytest.raises(ValueError, match="weights_hash='one' there, 'two' here"):
        draw_folder(Generator(other, batch_size=2), CAPTIONS, drawn, **SETTINGS)
    with pytest.raises(ValueError, match="count=7 there, 6 here; captions_hash"):
        draw_folder(generator, CAPTIONS[:6], drawn, **SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"guidance": float("nan")}, "guidance"),
        ({"sampler": "ddin"}, "did you mean 'ddim'"),
        ({"index": 2, "of": 2}, "index=2: must be in 0..1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(generator, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        draw_folder(generator, CAPTIONS, tmp_path / "new", **{**SETTINGS, **change})
    assert not (tmp_path / "new").exists()
