"""The one training loop and what it is made of: state, optimizer, step, reports.

`train(config, workdir)` brings a run to its last step, whatever happened to it before. What is
trained is a `tasks` matter, where arrays lie a `sharding` matter; here is what all runs share.
"""

from ldm_scaling.train.loop import train

__all__ = ["train"]
