"""Folders of models as people name them: one that is here, or a repository of the Hugging Face Hub.

What is fetched lies in the Hub's own cache (`HF_HOME`), where other libraries find it too, and is
fetched once. With `HF_HUB_OFFLINE=1` the cache is all that is asked.
"""

import os
import re
from pathlib import Path

# What readers here open: configs, tokenizers, and weights in safetensors; nothing that may hide
# code. Not the checker, nor copies of a UNet for further training.
FILES = (
    *("*.json", "*.txt", "*.model"),
    *("model*.safetensors", "*/model*.safetensors"),
    *("diffusion_pytorch_model*.safetensors", "*/diffusion_pytorch_model*.safetensors"),
)
LEFT_ASIDE = ("safety_checker/*", "*.non_ema.*", "*.non_ema-*")
HALF_PRECISION = ("*.fp16.*", "*.fp16-*")  # fetched where a model has no other safetensors

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_repository(name: str | os.PathLike[str]) -> bool:
    """Whether a name is "owner/name", and not of anything that is here."""
    return bool(_REPOSITORY.fullmatch(os.fspath(name))) and not Path(name).exists()


def find_model_folder(name: str | os.PathLike[str], field: str) -> Path:
    """A folder that is here; or that of a repository "owner/name", fetched if need be.

    Args:
      name: folder or repository; what is here comes first.
      field: what the user calls it, for the message.

    Raises:
      FileNotFoundError: it is neither; says what was tried, and how to get it by hand.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if not is_repository(name):
        raise FileNotFoundError(
            f"{field}={str(name)!r}: no such folder, and not 'owner/name' of a repository of the "
            "Hugging Face Hub"
        )
    from huggingface_hub import constants

    try:
        return _fetch(str(name))
    except Exception as error:  # the Hub's, the network's and the disk's have nothing in common
        offline = "is not asked, as HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "fails"
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise FileNotFoundError(
            f"{field}={str(name)!r}: no such folder, not in the cache {constants.HF_HUB_CACHE}, "
            f"and the Hugging Face Hub {offline} ({reason}); to get it by hand where there is a "
            f"network: 'hf download {name} --local-dir FOLDER', then give FOLDER"
        ) from error


def _fetch(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    found = Path(
        snapshot_download(
            repository,
            allow_patterns=list(FILES),
            ignore_patterns=[*LEFT_ASIDE, *HALF_PRECISION],
        )
    )
    for model in [config.parent for config in found.rglob("config.json")]:
        if not any(model.glob("*.safetensors")):
            home = "" if model == found else f"{model.relative_to(found).as_posix()}/"
            ends = (".safetensors", "-*.safetensors", ".json")
            snapshot_download(
                repository,
                allow_patterns=[f"{home}*.fp16{end}" for end in ends],
                ignore_patterns=list(LEFT_ASIDE),
            )
    return found
