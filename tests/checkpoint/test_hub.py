"""Repositories of the Hugging Face Hub by name, from a cache on disk: no test has a network."""

import subprocess
import sys

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import filter_repo_objects

from ldm_scaling.checkpoint.hub import find_model_folder, is_repository
from tests.checkpoint.hub_cache import write_snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def test_what_is_in_the_cache_is_found_without_a_network(cache, tmp_path):
    (tmp_path / "made" / "unet").mkdir(parents=True)
    (tmp_path / "made" / "unet" / "config.json").write_text("{}")
    snapshot = write_snapshot(cache, "owner/some.model-1", tmp_path / "made")
    found = find_model_folder("owner/some.model-1", "model")
    assert found == snapshot
    assert (found / "unet" / "config.json").read_text() == "{}"


def test_a_folder_that_is_here_comes_first(cache, tmp_path):
    write_snapshot(cache, "owner/name", tmp_path / "made")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert not is_repository("owner/name")
    assert str(find_model_folder("owner/name", "model")) == "owner/name"


@pytest.mark.usefixtures("cache")
def test_what_is_nowhere_says_what_was_tried_and_how_to_get_it():
    message = (
        r"source='owner/name': no such folder, not in the cache .*/cache, and the Hugging Face Hub "
        r"is not asked, as HF_HUB_OFFLINE is set .*hf download owner/name --local-dir FOLDER"
    )
    with pytest.raises(FileNotFoundError, match=message):
        find_model_folder("owner/name", "source")


@pytest.mark.usefixtures("cache")
def test_what_the_hub_says_is_passed_on(monkeypatch):
    def refuses(name, **_):
        raise ConnectionError(f"401: {name} is gated\nand more")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuses)
    with pytest.raises(FileNotFoundError, match=r"Hub fails \(401: owner/name is gated\); to get"):
        find_model_folder("owner/name", "model")


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    "name", ["nowhere", "/owner/name", "../name", "a/b/c", "gs://bucket", "owner/", "~/name"]
)
def test_paths_are_not_asked_for(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(FileNotFoundError, match=r"no such folder, and not 'owner/name'"):
        find_model_folder(name, "model")


# Of stable-diffusion-v1-5's repository and of openai/clip-vit-large-patch14's.
READ = [
    *("model_index.json", "scheduler/scheduler_config.json", "unet/config.json"),
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.json",
    *("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"),
    *("tokenizer/merges.txt", "tokenizer/vocab.json", "tokenizer/spiece.model"),
    *("config.json", "model.safetensors", "diffusion_pytorch_model.safetensors"),
]
NOT_READ = [
    *("README.md", "v1-5-pruned.ckpt", "v1-5-pruned-emaonly.safetensors", "flax_model.msgpack"),
    *("unet/diffusion_pytorch_model.bin", "pytorch_model.bin", "model.ckpt", "vae/model.pt"),
    *("unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"),
    *("unet/diffusion_pytorch_model.non_ema.safetensors", "safety_checker/model.safetensors"),
    *("tf_model.h5", "pipeline.py", "model.pkl", "safety_checker/config.json"),
]


def test_what_is_fetched_is_what_is_read_and_never_a_pickle(tmp_path, monkeypatch):
    asked = {}

    def download(name, **patterns):
        asked[name] = list(filter_repo_objects([*READ, *NOT_READ], **patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_model_folder("owner/name", "model") == tmp_path
    assert asked == {"owner/name": READ}


def test_half_precision_is_fetched_where_a_model_has_no_other(tmp_path, monkeypatch):
    half = [
        "text_encoder/model.safetensors.index.fp16.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16-00001-of-00002.safetensors",
        "text_encoder/model.fp16-00002-of-00002.safetensors",
    ]
    whole = ["unet/diffusion_pytorch_model.safetensors"]
    others = ["unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/pytorch_model.bin"]
    others += ["vae/diffusion_pytorch_model.fp16.bin", "text_encoder/model.fp16.ckpt"]
    configs = [f"{name}/config.json" for name in ("unet", "vae", "text_encoder")]
    there = [*half, *whole, *others, *configs]

    def download(name, **patterns):
        for path in map(tmp_path.joinpath, filter_repo_objects(there, **patterns)):
            path.parent.mkdir(exist_ok=True)
            path.touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    find_model_folder("owner/name", "model")
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {*half, *whole, *configs}


def test_the_client_is_loaded_where_it_is_needed_only():
    code = (
        "import sys, ldm_scaling.checkpoint.hub as hub; hub.find_model_folder('.', 'model')\n"
        "print('huggingface_hub' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
