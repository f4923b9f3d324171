"""Folders with something to read, each made once."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.numpy

from ldm_scaling.checkpoint.diffusers import WEIGHTS, export_unet
from tests.checkpoint.networks import SMALL, unet_params
from tests.checkpoint.states import save_steps


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_steps")
    save_steps(folder, 10, 20)
    return folder


@pytest.fixture
def copy_of_two(two_steps, tmp_path):
    return Path(shutil.copytree(two_steps, tmp_path / "run"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unet")
    params = unet_params(SMALL)
    export_unet(SMALL, params, folder)
    return folder, params


@pytest.fixture
def state(exported):
    return safetensors.numpy.load_file(exported[0] / f"{WEIGHTS}.safetensors")


@pytest.fixture
def config(exported):
    return json.loads((exported[0] / "config.json").read_text())
