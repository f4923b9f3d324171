"""A text-to-image model as it lies in a folder: UNet, autoencoder, text encoder, schedule."""

import dataclasses
import difflib
import glob
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ldm_scaling.checkpoint.diffusers import import_autoencoder, import_text_encoder, import_unet
from ldm_scaling.checkpoint.hub import find_model_folder, is_repository
from ldm_scaling.checkpoint.identity import files_hash
from ldm_scaling.checkpoint.packaged import MICRO_MAX_TOKENS, MODELS
from ldm_scaling.checkpoint.pipeline_folder import read_model_index, read_scheduler
from ldm_scaling.checkpoint.weights_file import read_json
from ldm_scaling.diffusion import Schedule
from ldm_scaling.encoders import AutoencoderConfig
from ldm_scaling.evaluation.text import TextEncoder
from ldm_scaling.types import Params
from ldm_scaling.unet import UNetConfig


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What is known of a model without reading its weights into memory.

    Attributes:
      folder: where it lies, in the diffusers layout.
      family, width, training_steps: its place in a study; of a model that we did not train
        "custom", the channels of its finest level, and 0.
      training_flops: spent on its UNet; None where it is not known.
      max_tokens: length of its contexts; None where it does not say.
      scheduler: its scheduler config.
      weights_hash: twelve hex digits over all files that decide its images.
    """

    folder: Path
    family: str
    width: int
    training_steps: int
    training_flops: float | None
    max_tokens: int | None
    scheduler: Mapping[str, Any]
    weights_hash: str

    @classmethod
    def read(cls, name_or_folder: str | Path) -> "ModelCard":
        """Reads what `find_folder` finds, and raises as it does."""
        folder = find_folder(name_or_folder)
        facts_path = folder / "training.json"
        facts = read_json(facts_path) if facts_path.exists() else {}
        channels = read_json(folder / "unet" / "config.json")["block_out_channels"]
        return cls(
            folder=folder,
            family=facts.get("family", "custom"),
            width=int(facts.get("width", channels[0])),
            training_steps=int(facts.get("step", 0)),
            training_flops=facts.get("training_flops"),
            max_tokens=facts.get("max_tokens"),
            scheduler=read_scheduler(folder),
            weights_hash=_hash_files(folder),
        )

    @property
    def spacing(self) -> str:
        """The timestep spacing that its scheduler config asks for."""
        return self.scheduler.get("timestep_spacing", "leading")


@dataclasses.dataclass(frozen=True)
class Model:
    """Weights and what they mean.

    Attributes:
      card: what it is.
      unet, autoencoder: architectures.
      params: {"unet": ..., "autoencoder": ...}.
      schedule: noise schedule it was trained with.
      text_encoder: captions to contexts.
    """

    card: ModelCard
    unet: UNetConfig
    autoencoder: AutoencoderConfig
    params: Params
    schedule: Schedule
    text_encoder: TextEncoder

    @classmethod
    def from_folder(cls, name_or_folder: str | Path, minilm: TextEncoder | None = None) -> "Model":
        """Reads a pipeline in the diffusers layout.

        Args:
          name_or_folder: a folder with `model_index.json`, one of `packaged_models()`, or
            "owner/name" of the Hugging Face Hub.
          minilm: the packaged text encoder, where it is at hand already.

        Raises:
          FileNotFoundError: there is no such model; names what there is.
        """
        card = ModelCard.read(name_or_folder)
        unet, unet_params = import_unet(card.folder / "unet")
        autoencoder, autoencoder_params = import_autoencoder(vae_folder(card.folder))
        return cls(
            card=card,
            unet=unet,
            autoencoder=autoencoder,
            params={"unet": unet_params, "autoencoder": autoencoder_params},
            schedule=Schedule.from_config(card.scheduler),
            text_encoder=_text_encoder(card, minilm),
        )


def packaged_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in MODELS.glob("*/model_index.json"))


def find_folder(name_or_folder: str | Path) -> Path:
    """The folder of a model: one that is here, a packaged one, or a repository of the Hub's.

    Raises:
      FileNotFoundError: there is none; names the nearest packaged model, or says what the Hub did,
        see `checkpoint.hub`.
    """
    for folder in (Path(name_or_folder), MODELS / name_or_folder):
        if (folder / "model_index.json").is_file():
            return folder
    if is_repository(name_or_folder):
        folder = find_model_folder(name_or_folder, "model")
        if (folder / "model_index.json").is_file():
            return folder
    names = packaged_models()
    near = difflib.get_close_matches(str(name_or_folder), names, n=1, cutoff=0.0)
    hint = f"; the nearest packaged model is {near[0]!r}, all are {names}" if near else ""
    raise FileNotFoundError(
        f"model={str(name_or_folder)!r}: neither a folder with model_index.json, here or in the "
        f"Hugging Face Hub, nor the name of a packaged model{hint}"
    )


def expand_names(names: Iterable[str]) -> list[str]:
    """Names and folders of models, with patterns such as "runs/*/export/final" filled in.

    Raises FileNotFoundError for a pattern that no model's folder matches.
    """
    found: list[str] = []
    for name in names:
        if "*" not in name:
            found.append(name)
            continue
        matches = [path for path in glob.glob(name) if Path(path, "model_index.json").is_file()]
        if not matches:
            raise FileNotFoundError(f"models: no folder with model_index.json matches {name!r}")
        found += sorted(matches)
    return found


def vae_folder(folder: Path) -> Path:
    """Where a model's autoencoder lies: in its folder, or beside it where a family shares one."""
    own = folder / "vae"
    return own if own.is_dir() else folder.parent / "vae"


def _hash_files(folder: Path) -> str:
    text = [part for part in (folder / "text_encoder", folder / "tokenizer") if part.is_dir()]
    return files_hash(
        (f"{part.name}/{path.name}", path)
        for part in (folder / "unet", vae_folder(folder), folder / "scheduler", *text)
        for path in sorted(p for p in part.iterdir() if p.is_file())
    )


def _text_encoder(card: ModelCard, minilm: TextEncoder | None) -> TextEncoder:
    folder = card.folder
    library, name = read_model_index(folder)["text_encoder"]
    if library == "ldm_scaling":
        if name != "minilm":
            raise ValueError(f"{folder}/model_index.json: text_encoder={name!r}; expected 'minilm'")
        max_tokens = card.max_tokens or MICRO_MAX_TOKENS
        if minilm and minilm.max_tokens == max_tokens:
            return minilm
        return TextEncoder.packaged(max_tokens)
    config, params = import_text_encoder(folder / "text_encoder")
    return TextEncoder(config, params, folder / "tokenizer", card.max_tokens)
