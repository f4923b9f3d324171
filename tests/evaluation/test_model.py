import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from huggingface_hub import constants

from ldm_scaling.checkpoint.conversion import convert_folder
from ldm_scaling.evaluation import Model, ModelCard, TextEncoder, find_folder, sentence_embeddings
from ldm_scaling.evaluation.files import cached_array, write_atomically
from ldm_scaling.evaluation.model import expand_names
from tests.checkpoint.hub_cache import write_snapshot
from tests.encoders.vocabularies import clip_folder
from tests.evaluation.conftest import AUTOENCODER, SCHEDULE, UNET, HashedText, tiny_params


def test_a_folder_becomes_what_was_exported(models):
    model = Model.from_folder(models / "early", HashedText())
    assert (model.unet, model.autoencoder, model.schedule) == (UNET, AUTOENCODER, SCHEDULE)
    jax.tree.map(np.testing.assert_array_equal, dict(model.params), tiny_params(0))
    card = model.card
    assert (card.family, card.width, card.training_steps) == ("micro", 8, 100)
    assert card.spacing == "trailing"
    assert card.training_flops == 1e9


def test_the_hash_names_the_weights(models, tmp_path):
    early, late = ModelCard.read(models / "early"), ModelCard.read(models / "late")
    assert early.weights_hash != late.weights_hash
    copy = shutil.copytree(models / "early", tmp_path / "copy")
    (copy / "training.json").unlink()
    card = ModelCard.read(copy)
    assert card.weights_hash == early.weights_hash
    assert (card.family, card.width, card.training_steps) == ("custom", 8, 0)
    assert card.training_flops is None


def test_a_family_may_share_its_autoencoder(models, tmp_path):
    copy = shutil.copytree(models / "early", tmp_path / "one")
    shutil.move(copy / "vae", tmp_path / "vae")
    assert ModelCard.read(copy).weights_hash == ModelCard.read(models / "early").weights_hash
    assert Model.from_folder(copy, HashedText()).autoencoder == AUTOENCODER


def test_what_is_missing_is_named(models, tmp_path):
    with pytest.raises(FileNotFoundError, match="model='nowhere': neither a folder with model_ind"):
        find_folder("nowhere")
    copy = shutil.copytree(models / "early", tmp_path / "copy")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(
        json.dumps({**index, "text_encoder": ["ldm_scaling", "maxilm"]})
    )
    with pytest.raises(ValueError, match="text_encoder='maxilm'; expected 'minilm'"):
        Model.from_folder(copy)


def test_a_pipeline_of_the_hub_is_the_one_of_its_folder(stable_diffusion, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = write_snapshot(tmp_path, "owner/diffusion", stable_diffusion)
    assert find_folder("owner/diffusion") == snapshot
    found, expected = (ModelCard.read(n) for n in ("owner/diffusion", stable_diffusion))
    assert found == dataclasses.replace(expected, folder=snapshot)
    assert Model.from_folder("owner/diffusion").unet.context_size == 32
    convert_folder(snapshot, tmp_path / "copy", vae=snapshot / "vae")
    assert not [path for path in (tmp_path / "copy").rglob("*") if path.is_symlink()]
    with pytest.raises(FileNotFoundError, match=r"model='owner/other': no such folder, .*hf downl"):
        Model.from_folder("owner/other")
    (snapshot / "model_index.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"model_index\.json, here or in the Hugging Face Hub"
    ):
        find_folder("owner/diffusion")


def test_patterns_become_folders(models, tmp_path):
    (models / "empty").mkdir(exist_ok=True)
    found = expand_names(["micro-8", str(models / "*")])
    assert found == ["micro-8", str(models / "early"), str(models / "late")]
    with pytest.raises(FileNotFoundError, match=r"no folder with model_index\.json matches"):
        expand_names([str(tmp_path / "*")])


def test_the_length_of_contexts_comes_from_training(models, tmp_path):
    copy = shutil.copytree(models / "early", tmp_path / "copy")
    facts = json.loads((copy / "training.json").read_text())
    (copy / "training.json").write_text(json.dumps({**facts, "max_tokens": 40}))
    card = ModelCard.read(copy)
    assert card.max_tokens == 40
    assert ModelCard.read(models / "early").max_tokens is None
    assert Model.from_folder(copy, HashedText()).text_encoder(["a cat"]).shape == (1, 40, 384)


def test_a_folder_may_hold_its_own_text_encoder(models, tmp_path):
    """CLIP's, cut to the length that its tokenizer knows of; it decides images, so the hash too."""
    copy = shutil.copytree(models / "early", tmp_path / "copy")
    without = ModelCard.read(copy).weights_hash
    config = clip_folder(copy / "text_encoder", copy / "tokenizer", width=384)
    index = json.loads((copy / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "CLIPTextModel"]
    (copy / "model_index.json").write_text(json.dumps(index))
    encoder = Model.from_folder(copy).text_encoder
    assert encoder.max_tokens == config.max_position_embeddings < 77
    context = encoder(["a cat", ""])
    assert context.shape == (2, encoder.max_tokens, 384)
    assert (np.abs(context).max(-1) > 0).all()  # padding is read, and kept
    assert ModelCard.read(copy).weights_hash != without


def test_a_converted_model_reads_its_captions_as_before(models, tmp_path):
    """Of the packaged family no file says how long its contexts are."""
    convert_folder(models / "early", tmp_path / "new", vae=models / "early" / "vae")
    before, after = (Model.from_folder(path) for path in (models / "early", tmp_path / "new"))
    captions = ["a cat", ""]
    np.testing.assert_allclose(
        after.text_encoder(captions), before.text_encoder(captions), atol=1e-5
    )


def test_contexts_are_zero_at_padding_and_cached(tmp_path):
    encoder = TextEncoder.packaged()
    captions = ["a cat", "", "a flag of a country that no map shows"]
    context = encoder.cached(captions, tmp_path)
    assert context.shape == (3, 24, 384)
    tokens = (context != 0).any(axis=-1).sum(axis=1)
    assert list(tokens) == [4, 2, 11]  # [CLS] and [SEP] are counted
    np.testing.assert_allclose(encoder(captions[2:]), context[2:], atol=1e-5)
    assert len(list(tmp_path.iterdir())) == 1
    sentences = sentence_embeddings(encoder(["a cat", "a kitten", "tax law"]))
    np.testing.assert_allclose(np.linalg.norm(sentences, axis=1), 1, rtol=1e-5)
    assert sentences[0] @ sentences[1] > 0.6 > 0.2 > sentences[0] @ sentences[2]


def test_files_are_whole_or_absent(tmp_path):
    path = tmp_path / "deep" / "array.npy"
    write_atomically(path, lambda file: file.write(b"old"))

    def dies(file):
        file.write(b"ne")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, dies)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["array.npy"]
    np.testing.assert_array_equal(cached_array(path, lambda: np.arange(3)), [0, 1, 2])  # damaged
    np.testing.assert_array_equal(cached_array(path, lambda: pytest.fail("known")), [0, 1, 2])
