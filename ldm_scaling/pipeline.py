"""`TextToImage`: the face of the library for notebooks and scripts."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, UInt8

from ldm_scaling.diffusion import sampler_table
from ldm_scaling.evaluation import Generator, Model
from ldm_scaling.sharding import BATCH_AXES

GUIDANCE = 7.5
"""The guidance rate of Stable Diffusion and of the paper's base experiments."""

BATCH = 8
"""Images drawn at a time where nothing else is asked for, or a few more for many devices."""


class TextToImage:
    """Prompts to images with one model.

    The weights are read and compiled for once: a call with another sampler, step count, guidance
    rate, seed or set of prompts compiles nothing new (step counts beyond 16, 64 and 256 excepted,
    once each).

    Example:
      draw = TextToImage.from_pretrained("micro-48")
      images = draw(["red apple", "cat face"], steps=20, guidance=3.0)
    """

    def __init__(self, model: Model, *, batch_size: int | None = None, mesh: Mesh | None = None):
        """Wraps a model that is in memory; `from_pretrained` reads one from disk.

        Args:
          model: weights and what they mean.
          batch_size: images drawn at a time; other numbers of prompts are padded to it. Default
            the least number from 8 on that the devices can share.
          mesh: devices to draw on, see `ldm_scaling.sharding.make_mesh`; default the first alone.
        """
        if batch_size is None:
            parts = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
            batch_size = math.ceil(BATCH / parts) * parts
        self.model = model
        self._generator = Generator(model, batch_size=batch_size, mesh=mesh)
        self._empty = model.text_encoder([""])

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | Path, *, batch_size: int | None = None, mesh: Mesh | None = None
    ) -> "TextToImage":
        """Reads a folder in the diffusers layout, a packaged model by its name ("micro-48"), or a
        repository of the Hugging Face Hub ("owner/name").

        Raises:
          FileNotFoundError: no such model; names those there are.
        """
        return cls(Model.from_folder(name_or_folder), batch_size=batch_size, mesh=mesh)

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] = "",
        steps: int = 50,
        guidance: float | Sequence[float] = GUIDANCE,
        sampler: str = "ddim",
        spacing: str | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> UInt8[np.ndarray, "B H W 3"]:
        """Draws one image per prompt.

        Args:
          prompts: texts; "" draws without one. What does not fit the text encoder is cut off, and
            a warning says so. Repeat a prompt for several images of it: each place in the list has
            noise of its own.
          negative_prompt: what guidance leads away from, one for all or one per prompt; "" leads
            away from the average image. Without guidance (rate 1) it has no effect.
          steps: 1..1000 evaluations of the denoiser.
          guidance: classifier-free guidance rate (arXiv:2207.12598), one for all or one per prompt;
            1 is none.
          sampler: "ddim", "ddpm" or "dpmpp_2m".
          spacing: of the timesteps, "leading", "trailing" or "linspace"; default what the model's
            scheduler config asks for.
          seed: of all noise. The image of a place in the list depends on it, the prompt and the
            sampler, and on no other prompt.
          progress: show a bar with the time left.

        Returns:
          uint8 [B, H, W, 3].

        Raises:
          ValueError: unknown sampler or spacing (names the nearest), steps out of range, guidance
            that is not finite, as many rates or negative prompts as do not fit the prompts, no
            prompts.
          TypeError: a prompt that is not a string.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        rates = np.asarray(guidance, np.float32)
        if rates.ndim and rates.shape != (len(prompts),):
            raise ValueError(
                f"guidance={guidance}: {rates.size} rates for {len(prompts)} prompts; "
                "give one for all, or one per prompt"
            )
        table = sampler_table(
            sampler, self.model.schedule, steps, spacing=spacing or self.model.card.spacing
        )
        if not prompts:
            raise ValueError("prompts: empty; drawing needs at least 1 prompt")
        return self._generator(
            self.model.text_encoder(prompts),
            self._unconditional(negative_prompt, len(prompts)),
            np.arange(len(prompts), dtype=np.int32),
            table,
            guidance=rates if rates.ndim else float(rates),
            seed=seed,
            progress="drawing" if progress else "",
        )

    def _unconditional(
        self, negative: str | Sequence[str], count: int
    ) -> Float[np.ndarray, "N L D"]:
        """Contexts of the negative prompts: one, or one for each of `count` prompts."""
        if not isinstance(negative, str) and len(negative) != count:
            raise ValueError(
                f"negative_prompt: {len(negative)} for {count} prompts; give one for all, or one "
                "per prompt"
            )
        if isinstance(negative, str):
            return self.model.text_encoder([negative]) if negative else self._empty
        return self.model.text_encoder(list(negative))
