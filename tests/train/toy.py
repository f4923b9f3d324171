"""The smallest task that still has everything: a linear map learned from noisy examples."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

SIZE = 16


class ToyTask:
    """Learns y = x W from noisy x; `frozen["target"]` is W. An input of NaN spoils a batch."""

    def __init__(self):
        target = np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(np.float32)
        self.frozen = {"target": target}
        self.point = {"task": "toy", "family": "toy", "width": SIZE}
        self.facts = {}
        self.forward_flops = 2.0 * SIZE * SIZE

    def init(self, key):
        first, second = jax.random.split(key)
        return {
            "hidden": {"kernel": jax.random.normal(first, (SIZE, 2 * SIZE)) / SIZE**0.5},
            "out": {"kernel": jax.random.normal(second, (2 * SIZE, SIZE)) / SIZE**0.5},
        }

    def loss(self, params, frozen, batch, keys, step):
        noise = jax.vmap(lambda key: jax.random.normal(key, (SIZE,)))(keys)
        x = batch["x"] + 0.1 * noise
        y = jnp.tanh(x @ params["hidden"]["kernel"]) @ params["out"]["kernel"]
        loss = jnp.square(y - batch["x"] @ frozen["target"]).mean()
        return loss, {"size": jnp.abs(y).mean()}

    def host_batch(self, batch):
        return batch

    def export(self, params, folder: Path):
        np.savez(folder / "params.npz", **{k: np.asarray(v["kernel"]) for k, v in params.items()})
        (folder / "config.json").write_text(json.dumps({"size": SIZE}))


class ToyBatches:
    """Batches that are a function of the step; those in `bad_steps` hold a NaN.

    `rows`: those of this process, as `sharding.local_rows` gives them.
    """

    def __init__(self, batch_size=16, bad_steps=(), on_step=None, rows=None):
        self.batch_size, self.bad_steps, self.on_step = batch_size, bad_steps, on_step
        self.rows = slice(None) if rows is None else list(rows)

    def batch(self, step):
        x = np.random.default_rng((1, step)).normal(size=(self.batch_size, SIZE))
        if step in self.bad_steps:
            x[3, 4] = np.nan
        ids = np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.int32)
        return {"x": x.astype(np.float32)[self.rows], "example_id": ids[self.rows]}

    def iterate(self, first_step):
        step = first_step
        while True:
            if self.on_step:
                self.on_step(step)
            yield step, self.batch(step)
            step += 1


def toy_config(**changes):
    config = ConfigDict(
        {
            "task": "toy",
            "seed": 0,
            "batch_size": 16,
            "accumulate": 1,
            "num_steps": 12,
            "optimizer": {
                "learning_rate": 1e-2,
                "warmup_steps": 4,
                "decay": "constant",
                "decay_steps": 12,
                "b1": 0.9,
                "b2": 0.99,
                "eps": 1e-8,
                "weight_decay": 0.01,
                "clip_norm": 1.0,
            },
            "ema_decay": 0.99,
            "max_bad_steps": 3,
            "mesh": {"replica": 1, "fsdp": -1, "tensor": 1},
            "tpu_options": "",
            "log_every": 4,
            "eval_every": 0,
            "eval_batches": 2,
            "checkpoint_every": 5,
            "keep_checkpoints": 2,
            "export_every": 0,
            "export_steps": (),
            "profile_every": 0,
        }
    )
    config.update(changes)
    return config
