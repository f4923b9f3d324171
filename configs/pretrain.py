"""Text-to-image training: `configs/pretrain.py:320` (the paper's widths) or `:micro-32`."""

import difflib

from ml_collections import ConfigDict

from ldm_scaling.unet import MICRO_WIDTHS, WIDTHS

NAMES = (*(str(width) for width in WIDTHS), *(f"micro-{width}" for width in MICRO_WIDTHS))


def get_config(name: str = "micro-32") -> ConfigDict:
    if name not in NAMES:
        raise ValueError(f"width={name!r}: did you mean {_nearest(name)!r}? Valid are {NAMES}")
    micro = name.startswith("micro-")
    config = ConfigDict()
    config.task = "pretrain"
    config.family = "micro" if micro else "paper"
    config.width = int(name.removeprefix("micro-"))
    config.seed = 0
    # Frozen parts. autoencoder: "micro" (packaged), or a folder in diffusers' layout.
    # text_encoder: "minilm" (packaged, 384 features), or a folder: a pipeline's with text_encoder/
    # and tokenizer/, or one that holds a BERT, CLIP or T5 and its tokenizer. CLIP takes 77 tokens.
    # Each may be "owner/name" of the Hugging Face Hub.
    config.autoencoder = "micro" if micro else ""
    config.text_encoder = "minilm" if micro else ""
    config.text_encoder_dtype = "float32"  # of its products; "bfloat16" for CLIP and T5
    config.max_tokens = 24 if micro else 77
    config.model = {
        "context_size": 384 if micro else 1024,
        "prediction_type": "v_prediction" if micro else "epsilon",
        "dtype": "float32" if micro else "bfloat16",
        "remat": "none" if micro else "block",
        "attention": "auto",
    }
    config.diffusion = {
        "schedule": "zero_terminal_snr" if micro else "scaled_linear",
        "weighting": "uniform",
        "gamma": 5.0,
        "spacing": "trailing" if micro else "leading",
    }
    config.caption_dropout = 0.1
    config.data = {
        "name": "noto_emoji" if micro else "",
        "train_split": "train",
        "validation_split": "test",  # "": none
        "image_size": 64 if micro else 512,
        "caption": "first",  # or "random", where an image has several; not with a cache
        "workers": 0,
    }
    # Encode the whole source once instead of in every step: right where it fits in memory.
    config.cache = micro
    config.cache_dir = ""  # default: in the workdir; give one for several runs to share it

    config.batch_size = 32 if micro else 2048
    config.accumulate = 1
    config.num_steps = 10_000 if micro else 500_000
    config.optimizer = {
        "learning_rate": 1e-3 if micro else 1e-4,
        "warmup_steps": 500 if micro else 10_000,
        "decay": "cosine" if micro else "constant",
        "b1": 0.9,
        "b2": 0.99 if micro else 0.999,
        "eps": 1e-8,
        "mu_dtype": "float32",  # of the first moment; "bfloat16" saves 2 bytes a parameter
        "weight_decay": 0.01,
        "clip_norm": 1.0,
    }
    config.optimizer.decay_steps = config.get_oneway_ref("num_steps")
    config.ema_decay = 0.999 if micro else 0.9999
    config.max_bad_steps = 10

    config.mesh = {"replica": 1, "fsdp": -1, "tensor": 1}
    config.tpu_options = ""  # of the TPU's compiler, for the step: "name=value,name=value"
    config.log_every = 100
    config.eval_every = 1000
    config.eval_batches = 5
    config.checkpoint_every = 500 if micro else 5000
    config.keep_checkpoints = 2
    config.export_every = 0
    config.export_steps = (500, 1000, 2000, 4000) if micro else ()
    config.profile_every = 0
    # Compiled programs: "workdir", "off", or a folder for several runs to share.
    config.compilation_cache = "workdir"
    return config


def _nearest(name: str) -> str:
    """By number where there is one, else by spelling."""
    prefix, digits = ("micro-", name[6:]) if name.startswith("micro-") else ("", name)
    if digits.isdecimal():
        widths = MICRO_WIDTHS if prefix else WIDTHS
        return f"{prefix}{min(widths, key=lambda width: abs(width - int(digits)))}"
    return difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)[0]
