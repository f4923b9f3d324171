"""AdamW with warm-up, decay and clipping, built from `config.optimizer`."""

import optax
from ml_collections import ConfigDict

from ldm_scaling.naming import check_name

DECAYS = ("constant", "cosine")
DTYPES = ("float32", "bfloat16")


def learning_rate_schedule(config: ConfigDict) -> optax.Schedule:
    """Applied updates -> learning rate: linear warm-up from 0, then constant or cosine to 0.

    Args:
      config: learning_rate; warmup_steps (the first full-rate update is that one); decay, one of
        `DECAYS`; decay_steps, the update at which the cosine reaches 0.

    Raises:
      ValueError: for an unknown decay, or one that ends before the warm-up does.
    """
    check_name("optimizer.decay", config.decay, DECAYS)
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.decay == "constant":
        after = optax.constant_schedule(peak)
    elif config.decay_steps > warmup:
        after = optax.cosine_decay_schedule(peak, config.decay_steps - warmup)
    else:
        raise ValueError(
            f"optimizer.decay_steps={config.decay_steps}: must be more than "
            f"optimizer.warmup_steps={warmup}"
        )
    if not warmup:
        return after
    # (count + 1) / warmup: the first update is small but not empty.
    ramp = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW (decoupled weight decay on every parameter, as torch's).

    `mu_dtype` is that of the first moment: bfloat16 saves 2 bytes a parameter. The second needs
    float32, as its changes are smaller than bfloat16 resolves at b2 = 0.999.

    Clipping is what cured the NaNs of large-batch training (mosaicml/diffusion#30).
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate_schedule(config),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mu_dtype=check_name("optimizer.mu_dtype", config.get("mu_dtype", "float32"), DTYPES),
        ),
    )
