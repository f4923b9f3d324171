"""Objectives: what is trained, what is frozen, and what the loss is.

Each is a small class with the methods of `base.Task`; the loop, sharding, checkpoints and logs in
`train` are the same for all. A task knows networks and diffusion, not devices or files' places.
"""

from ldm_scaling.tasks.autoencoder import AutoencoderLoss, AutoencoderTask
from ldm_scaling.tasks.base import Task
from ldm_scaling.tasks.frozen import FrozenEncoders
from ldm_scaling.tasks.pretrain import PretrainTask

__all__ = ["AutoencoderLoss", "AutoencoderTask", "FrozenEncoders", "PretrainTask", "Task"]
