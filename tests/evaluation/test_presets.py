"""Each published protocol from COCO's files to a record, on a small set in the same format."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from ldm_scaling import metrics
from ldm_scaling.evaluation.captions import Caption
from ldm_scaling.evaluation.distances import distance_record
from ldm_scaling.evaluation.folder import draw_folder
from ldm_scaling.evaluation.generate import Generator
from ldm_scaling.evaluation.image_sets import open_images
from ldm_scaling.evaluation.presets import (
    PRESETS,
    fitted,
    preset,
    preset_captions,
    preset_reference,
)
from tests.evaluation.conftest import HashedText, Pixels


@pytest.mark.parametrize("name", PRESETS)
def test_each_runs_from_captions_to_record(name, coco, tiny_model, tmp_path):
    captions = preset_captions(name, coco / "annotations" / "captions_val2014.json", count=11)
    assert len({caption.reference for caption in captions}) == 11  # one caption an image
    model = dataclasses.replace(tiny_model, text_encoder=HashedText())
    generator = Generator(model, batch_size=5)
    draw_folder(generator, captions, tmp_path, steps=1, progress=False)
    network = Pixels(preset(name).resize)
    record = distance_record(
        network, str(tmp_path), f"{coco}/val2014", ["fid", "prdc"], preset=name
    )
    assert record.protocol["preset"] == name
    assert record.num_samples == 11
    chosen = preset(name)
    real = [
        fitted(np.asarray(Image.open(coco / "val2014" / file)), chosen.side, chosen.fit)
        for file in sorted(caption.reference for caption in captions)
    ]
    drawn = open_images(tmp_path)
    features = network([drawn[i] for i in range(len(drawn))])
    expected = metrics.frechet_from_features(features, network(real))
    assert record.metrics[f"fd_{network.name}"].value == pytest.approx(expected, rel=1e-5)


def test_they_choose_different_captions(coco):
    path = coco / "annotations" / "captions_val2014.json"
    chosen = {name: [c.id for c in preset_captions(name, path, count=11)] for name in PRESETS}
    assert chosen["mlperf"] == chosen["paper"] == sorted(chosen["mlperf"])
    assert chosen["mosaicml"] != sorted(chosen["mosaicml"])
    with pytest.raises(ValueError, match="has 12 captions to choose, not count=30000"):
        preset_captions("mlperf", path)


def test_fitting_keeps_or_breaks_proportions():
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 255
    assert (fitted(image, 10, "crop") == 255).all()
    stretched = fitted(image, 10, "stretch")
    assert stretched.shape == (10, 10, 3)
    assert (stretched[:, 0] == 0).all()
    assert (stretched[:, 5] == 255).all()


def test_refusals(coco, tmp_path, tiny_model):
    with pytest.raises(ValueError, match="did you mean 'mlperf'"):
        preset("mlperv")
    images = open_images(coco / "val2014")
    with pytest.raises(ValueError, match="the captions name no real images"):
        preset_reference("paper", images, [Caption(1, "text")])
    with pytest.raises(ValueError, match=r"1 of 1 real images are missing, the first is x\.jpg"):
        preset_reference("paper", images, [Caption(1, "text", "x.jpg")])
    (tmp_path / "metadata.jsonl").write_text('{"caption": "text", "id": 1}\n')
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "000000000001.png")
    with pytest.raises(ValueError, match="measured with inception_clean, not inception_legacy"):
        distance_record(Pixels("legacy"), str(tmp_path), f"{coco}/val2014", preset="mosaicml")
