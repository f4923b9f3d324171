"""Pipelines written anew: the same networks, all parts in one folder, whole or not at all."""

import json

import numpy as np
import pytest
import safetensors.numpy

from ldm_scaling.checkpoint import names
from ldm_scaling.checkpoint.conversion import convert_folder, convert_single_file
from ldm_scaling.checkpoint.diffusers import (
    export_autoencoder,
    export_text_encoder,
    export_unet,
    import_autoencoder,
    import_text_encoder,
    import_unet,
)
from ldm_scaling.checkpoint.pipeline_folder import (
    read_model_index,
    write_model_index,
    write_scheduler,
)
from ldm_scaling.encoders.clip import ClipTextConfig
from ldm_scaling.encoders.text import text_params
from ldm_scaling.encoders.tokenizers import load_tokenizer
from tests.checkpoint.networks import (
    UNETS,
    VAES,
    assert_same,
    random_like,
    unet_params,
    vae_params,
)
from tests.checkpoint.test_single_file import UNET, VAE
from tests.encoders.vocabularies import write_clip

CLIP = ClipTextConfig(
    vocab_size=514,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=1,
    max_position_embeddings=77,
)


@pytest.fixture(scope="module")
def clip_params():
    return random_like(text_params(CLIP), seed=3)


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "clip").mkdir()
    write_clip(tmp_path / "clip", [], "<|endoftext|>")
    return tmp_path / "clip"


@pytest.fixture
def pipeline(tmp_path, tokenizer, clip_params):
    folder = tmp_path / "family" / "c8"
    export_unet(UNETS["sd1"], unet_params(UNETS["sd1"]), folder / "unet")
    export_autoencoder(VAES["sd"], vae_params(VAES["sd"]), folder.parent / "vae")
    export_text_encoder(CLIP, clip_params, folder / "text_encoder")
    tokenizer.rename(folder / "tokenizer")
    write_scheduler(folder, {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"})
    write_model_index(folder, {"text_encoder": ("transformers", "CLIPTextModel")})
    return folder


def test_a_folder_gets_all_parts_and_keeps_their_values(tmp_path, pipeline, clip_params):
    convert_folder(pipeline, tmp_path / "new", vae=pipeline.parent / "vae")
    config, params = import_unet(tmp_path / "new" / "unet")
    assert config == UNETS["sd1"]
    assert_same(params, unet_params(UNETS["sd1"]))
    assert_same(import_autoencoder(tmp_path / "new" / "vae")[1], vae_params(VAES["sd"]))
    assert_same(import_text_encoder(tmp_path / "new" / "text_encoder")[1], clip_params)
    index = read_model_index(tmp_path / "new")
    assert index["tokenizer"] == ("transformers", "CLIPTokenizer")
    assert sorted(index) == sorted(
        path.name for path in (tmp_path / "new").iterdir() if path.is_dir()
    )


def test_the_length_of_contexts_is_where_all_look_for_it(tmp_path, pipeline):
    (pipeline / "training.json").write_text(json.dumps({"max_tokens": 40}))
    convert_folder(pipeline, tmp_path / "new", vae=pipeline.parent / "vae")
    assert load_tokenizer(pipeline / "tokenizer").longest == 77
    assert load_tokenizer(tmp_path / "new" / "tokenizer").longest == 40
    (pipeline / "training.json").unlink()
    convert_folder(pipeline, tmp_path / "unsaid", vae=pipeline.parent / "vae")
    assert load_tokenizer(tmp_path / "unsaid" / "tokenizer").longest == 77


def test_half_precision_is_half_the_size(tmp_path, pipeline):
    for dtype in ("float32", "float16"):
        convert_folder(pipeline, tmp_path / dtype, vae=pipeline.parent / "vae", dtype=dtype)
    sizes = [
        (tmp_path / dtype / "text_encoder" / "model.safetensors").stat().st_size
        for dtype in ("float32", "float16")
    ]
    assert sizes[1] < 0.55 * sizes[0]


@pytest.fixture
def single_file(tmp_path, goldens, clip_params):
    with np.load(goldens / "checkpoint_single_file.npz") as file:
        pairs = {name: json.loads(str(value)) for name, value in file.items()}
    state = {
        f"cond_stage_model.transformer.{name}": np.asarray(array)
        for name, array in names.to_file(clip_params).items()
    }
    for prefix, params, renamed in (
        ("model.diffusion_model", unet_params(UNET), pairs["unet_sd2"]),
        ("first_stage_model", vae_params(VAE), pairs["vae"]),
    ):
        stored = names.to_file(params)
        for old, shape, new in renamed:
            array = np.asarray(stored[new])
            state[f"{prefix}.{old}"] = array.reshape(array.shape + (1,) * (len(shape) - array.ndim))
    safetensors.numpy.save_file(state, tmp_path / "sd.safetensors")
    return tmp_path / "sd.safetensors"


def test_a_single_file_becomes_a_folder(tmp_path, single_file, tokenizer, clip_params):
    options = {"tokenizer": tokenizer, "sample_size": 16, "prediction_type": "v_prediction"}
    convert_single_file(single_file, tmp_path / "new", **options)
    config, params = import_unet(tmp_path / "new" / "unet")
    assert (config.prediction_type, config.sample_size) == ("v_prediction", 16)
    assert_same(params, unet_params(UNET))
    assert_same(import_autoencoder(tmp_path / "new" / "vae")[1], vae_params(VAE))
    config, params = import_text_encoder(tmp_path / "new" / "text_encoder")
    assert (config.hidden_act, config.num_hidden_layers) == ("quick_gelu", 2)
    assert_same(params, clip_params)


def test_what_fails_leaves_nothing_behind(tmp_path, pipeline, single_file):
    (pipeline / "text_encoder" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="torn or not safetensors"):
        convert_folder(pipeline, tmp_path / "new", vae=pipeline.parent / "vae")
    with pytest.raises(FileNotFoundError, match=r"tokenizer=.*: none of tokenizer\.json"):
        convert_single_file(single_file, tmp_path / "new", tokenizer=tmp_path)
    left = [path.name for path in tmp_path.iterdir()]
    assert not [name for name in left if "new" in name]


def test_what_is_there_is_not_overwritten(tmp_path, pipeline):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    for taken in (tmp_path / "full", pipeline):
        with pytest.raises(ValueError, match="is there already"):
            convert_folder(pipeline, taken, vae=pipeline.parent / "vae")
    (tmp_path / "empty").mkdir()
    convert_folder(pipeline, tmp_path / "empty", vae=pipeline.parent / "vae")
    assert (tmp_path / "empty" / "model_index.json").is_file()
