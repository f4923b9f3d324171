"""Files of published weights: the right ones are read, others are told apart before that."""

import hashlib

import numpy as np
import pytest

from ldm_scaling.checkpoint import published
from ldm_scaling.checkpoint.merge import KeyMismatchError
from ldm_scaling.checkpoint.names import to_file
from tests.checkpoint.test_torch_pickle import tensor, write_zip
from tests.golden_makers._seeded import backbone_state, inception_state


def write_state(path, state, counters=False):
    """A .pth file as PyTorch writes it, perhaps with a counter as newer versions add to norms."""
    storages = {str(i): array for i, array in enumerate(state.values())}
    tensors = {
        name: tensor("FloatStorage", str(i), array.size, array.shape, _strides(array))
        for i, (name, array) in enumerate(state.items())
    }
    if counters:
        tensors["bn.num_batches_tracked"] = tensor("LongStorage", "n", 1, (), ())
        storages["n"] = np.array([7], np.int64)
    write_zip(path, tensors, storages)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _strides(array):
    return tuple(step // array.itemsize for step in np.ascontiguousarray(array).strides)


def test_inception_is_read_and_keeps_every_number(tmp_path, monkeypatch):
    state = inception_state()
    digest = write_state(tmp_path / "inception.pth", state, counters=True)
    monkeypatch.setattr(published, "INCEPTION", f"https://example.org/of-2015-{digest[:8]}.pth")
    params = published.load_inception(tmp_path / "inception.pth")
    assert params["Mixed_6b"]["branch7x7dbl_2"]["conv"]["kernel"].shape == (7, 1, 128, 128)
    back = to_file(params)
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[name], array) for name, array in state.items())


def test_a_missing_file_says_where_it_is_to_be_had(tmp_path):
    message = (
        r"no such file; get it from https://github.com/mseitzer/.*6726825d\.pth .*256 6726825d"
    )
    with pytest.raises(FileNotFoundError, match=message):
        published.load_inception(tmp_path / "nowhere.pth")


def test_other_weights_are_refused_unless_they_are_meant(tmp_path):
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    found = write_state(path, {"fc.weight": np.zeros((1008, 2048), np.float32)})[:8]
    with pytest.raises(ValueError, match=rf"with {found}, .* 6726825d; pass published=False"):
        published.load_inception(path)
    with pytest.raises(KeyMismatchError, match=r"missing:\n.*Conv2d_1a_3x3\.bn\.bias"):
        published.load_inception(path, published=False)


def test_backbones_are_read_without_their_classifiers(tmp_path, monkeypatch):
    state = backbone_state("squeeze")
    path = tmp_path / "squeeze.pth"
    classifier = {"classifier.1.weight": np.zeros((10, 512, 1, 1), np.float32)}
    digest = write_state(path, {**state, **classifier})
    with pytest.raises(ValueError, match=r"squeezenet1_1-b8a52dc0\.pth with b8a52dc0"):
        published.load_lpips_backbone("squeeze", path)
    older = ("new-00000000.pth", f"old-{digest[:8]}.pth")
    monkeypatch.setitem(published.BACKBONE_FILES, "squeeze", older)
    back = to_file(published.load_lpips_backbone("squeeze", path))
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[name], array) for name, array in state.items())
    with pytest.raises(KeyMismatchError, match=r"unexpected:\n.*features\.10\.expand1x1\.bias"):
        published.load_lpips_backbone("alex", path, published=False)
    with pytest.raises(ValueError, match="net='vgg16': did you mean 'vgg'"):
        published.load_lpips_backbone("vgg16", path)
