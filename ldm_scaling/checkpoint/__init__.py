"""The checkpoint room: everything that is read from disk as weights, or written there.

Training state goes through Orbax (`state.py`, whole or not at all); weights that others shall open,
or have made, go through the diffusers folder layout (`diffusers.py`) and are merged strictly
(`merge.py`). Pickles are read only by a parser that knows tensors and nothing else.
"""

from ldm_scaling.checkpoint.state import CheckpointError, Checkpoints

__all__ = ["CheckpointError", "Checkpoints"]
