"""The two small files that make component folders a pipeline, as plain dicts.

    model_index.json                which class of which library reads each component
    scheduler/scheduler_config.json betas, spacing, and what the UNet predicts

What is in a scheduler's config is the diffusion room's business; here it is only carried.
"""

import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from ldm_scaling.checkpoint.weights_file import read_json, write_json

Folder = str | os.PathLike[str]
_INDEX, _SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"


def write_model_index(
    folder: Folder,
    components: Mapping[str, tuple[str, str]],
    class_name: str = "StableDiffusionPipeline",
) -> None:
    """Writes model_index.json.

    Args:
      folder: of the pipeline.
      components: folder name -> (library, class), as {"unet": ("diffusers",
        "UNet2DConditionModel")}. A component of ours that is no folder names us as the library.
      class_name: pipeline that diffusers would build from it.
    """
    entries = {name: list(home) for name, home in components.items()}
    write_json(epath.Path(folder) / _INDEX, {"_class_name": class_name, **entries})


def read_model_index(folder: Folder) -> dict[str, tuple[str, str]]:
    """Components of a pipeline folder: name -> (library, class); absent ones are left out.

    Raises FileNotFoundError or ValueError, both name the file.
    """
    entries = read_json(epath.Path(folder) / _INDEX)
    return {
        name: (home[0], home[1])
        for name, home in entries.items()
        if isinstance(home, list) and len(home) == 2 and None not in home
    }


def write_scheduler(folder: Folder, config: Mapping[str, Any]) -> None:
    """Writes scheduler/scheduler_config.json of the pipeline in `folder`."""
    write_json(epath.Path(folder) / _SCHEDULER, config)


def read_scheduler(folder: Folder) -> dict[str, Any]:
    """Reads scheduler/scheduler_config.json. Raises FileNotFoundError or ValueError, naming it."""
    return read_json(epath.Path(folder) / _SCHEDULER)
