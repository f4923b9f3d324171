"""Goldens of CLIP and T5: transformers' models with small random weights, CLIP's own tokenizer.

Needs torch, transformers, ftfy, regex and, installed with --no-deps, open-clip-torch 3.3.0, of
which the byte pairs of CLIP's vocabulary are read and the tokenizer is run.
"""

import importlib.util
import json
import tempfile
from pathlib import Path

import numpy as np
from encoders.vocabularies import openai_merges, write_clip
from golden_makers.encoders import CAPTIONS, half_state, randomised

WORDS, END = 60, 58
TEXTS = {
    # As Stable Diffusion 1.x: the end token is written as 2, and found as the largest number.
    "quick": {
        "vocab_size": WORDS,
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "max_position_embeddings": 20,
        "hidden_act": "quick_gelu",
        "eos_token_id": 2,
    },
    "gelu": {
        "vocab_size": WORDS,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "max_position_embeddings": 16,
        "hidden_act": "gelu",
        "eos_token_id": END,
        "projection_dim": 20,
        "layer_norm_eps": 1e-4,
    },
}
WHOLE = {
    "text_config": {**TEXTS["gelu"], "num_hidden_layers": 1},
    "vision_config": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
        "image_size": 12,
        "patch_size": 4,
    },
    "projection_dim": 20,
}
T5S = {
    "gated": {
        "vocab_size": WORDS,
        "d_model": 24,
        "d_kv": 5,  # heads that do not add up to the width
        "d_ff": 40,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
    },
    "relu": {
        "vocab_size": WORDS,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 3,
        "num_heads": 2,
        "feed_forward_proj": "relu",
        "relative_attention_num_buckets": 16,
        "relative_attention_max_distance": 40,
    },
}
T5_LENGTHS = (9, 150)  # the longer one reaches beyond the last bucket's edge, 128
PROMPTS = [*CAPTIONS, "a dog's tail, they'll say 'no'; C++ & 3.14 €\n\tnew line", "CAPS and caps"]
MAX_TOKENS = (77, 9)


def make(out: Path) -> None:
    import torch

    torch.set_grad_enabled(False)
    for name, config in TEXTS.items():
        np.savez_compressed(out / f"encoders_clip_{name}.npz", **clip_text(config))
    np.savez_compressed(out / "encoders_clip_whole.npz", **clip_whole())
    for name, config in T5S.items():
        np.savez_compressed(out / f"encoders_t5_{name}.npz", **t5(config))
    np.savez_compressed(out / "encoders_t5_buckets.npz", **t5_buckets())
    np.savez_compressed(out / "encoders_clip_tokens.npz", **clip_tokens())


def prompts(length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Token ids with one end each, after it padding, and the mask: [3, length]."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, END, (3, length))
    lengths = np.array([length, max(length // 2, 2), 2])
    ids[np.arange(3), lengths - 1] = END
    mask = np.arange(length) < lengths[:, None]
    return np.where(mask, ids, 0), mask.astype(np.int64)


def clip_text(config: dict) -> dict[str, np.ndarray]:
    """States with and without the mask, of two lengths; the penultimate ones normalised.

    And those that transformers' own bfloat16 gives: how far off is far off.
    """
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    has_projection = "projection_dim" in config
    kind = CLIPTextModelWithProjection if has_projection else CLIPTextModel
    model = randomised(kind(CLIPTextConfig(**config, attn_implementation="eager")))
    body = model.text_model if has_projection else model
    arrays: dict[str, np.ndarray] = {}
    for length in (config["max_position_embeddings"], 7):
        ids, mask = prompts(length)
        for suffix, given in (("", None), ("_masked", torch.from_numpy(mask))):
            output = model(torch.from_numpy(ids), given, output_hidden_states=True)
            pooled = output.text_embeds if has_projection else output.pooler_output
            found = {
                "last": output.last_hidden_state,
                "penultimate": body.final_layer_norm(output.hidden_states[-2]),
                "pooled": pooled,
            }
            arrays |= {f"{k}_{length}{suffix}": v.numpy() for k, v in found.items()}
        arrays |= {f"ids_{length}": ids, f"mask_{length}": mask}
    state = half_state(model)
    rough = model.bfloat16()(torch.from_numpy(ids))
    arrays["bfloat16_7"] = rough.last_hidden_state.float().numpy()
    if not has_projection:  # as files have it, whatever the version of transformers
        state = {k.replace("state/", "state/text_model.", 1): v for k, v in state.items()}
        state = {k.replace("text_model.text_model", "text_model"): v for k, v in state.items()}
    return {"config": json.dumps(config), **state, **arrays}


def clip_whole() -> dict[str, np.ndarray]:
    import torch
    from transformers import CLIPConfig, CLIPModel

    model = randomised(CLIPModel(CLIPConfig(**WHOLE, attn_implementation="eager")))
    pixels = np.random.default_rng(0).normal(size=(4, 12, 12, 3)).astype(np.float32)
    ids, mask = prompts(11)
    planar = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    output = model(torch.from_numpy(ids), planar, torch.from_numpy(mask))
    arrays = {
        "image_embeds": output.image_embeds.numpy(),
        "text_embeds": output.text_embeds.numpy(),
        "logits_per_image": output.logits_per_image.numpy(),
        "pooled": model.vision_model(planar).pooler_output.numpy(),
    }
    inputs = {"pixels": pixels, "ids": ids, "mask": mask}
    return {"config": json.dumps(WHOLE), **half_state(model), **inputs, **arrays}


def t5(config: dict) -> dict[str, np.ndarray]:
    import torch
    from transformers import T5Config, T5EncoderModel

    model = T5EncoderModel(T5Config(**config, attn_implementation="eager"))
    randomised(model)
    arrays: dict[str, np.ndarray] = {}
    for length in T5_LENGTHS:
        ids, mask = prompts(length)
        hidden = model(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state
        arrays[f"hidden_{length}"] = (hidden * torch.from_numpy(mask)[..., None]).numpy()
        arrays |= {f"ids_{length}": ids, f"mask_{length}": mask}
    state = half_state(model)
    state.pop("state/encoder.embed_tokens.weight", None)  # the same as shared.weight
    for length in T5_LENGTHS:
        ids, mask = (torch.from_numpy(arrays[f"{name}_{length}"]) for name in ("ids", "mask"))
        rough = model.bfloat16()(ids, mask).last_hidden_state.float() * mask[..., None]
        arrays[f"bfloat16_{length}"] = rough.numpy()
    return {"config": json.dumps(config), **state, **arrays}


def t5_buckets() -> dict[str, np.ndarray]:
    """The buckets of all distances from -300 to 300, for several sizes."""
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-300, 301)
    return {
        f"buckets_{count}_{end}": T5Attention._relative_position_bucket(
            distances, bidirectional=True, num_buckets=count, max_distance=end
        ).numpy()
        for count, end in ((32, 128), (16, 40), (64, 256))
    }


def clip_tokens() -> dict[str, np.ndarray]:
    """Ids by OpenCLIP's own tokenizer, which pads with 0, and by transformers' with that padding.

    They differ at curly quotes, which OpenCLIP's makes straight.
    """
    from transformers import CLIPTokenizer

    package = Path(importlib.util.find_spec("open_clip").submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", package / "tokenizer.py")
    module = importlib.util.module_from_spec(spec)  # alone: the package would import torchvision
    spec.loader.exec_module(module)
    own = module.SimpleTokenizer()
    with tempfile.TemporaryDirectory() as folder:
        write_clip(Path(folder), openai_merges(package), padding="!")
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    arrays = {"prompts": np.array(PROMPTS)}
    for n in MAX_TOKENS:
        arrays[f"open_clip_{n}"] = own(PROMPTS, context_length=n).numpy().astype(np.int32)
        encoded = tokenizer(
            PROMPTS, padding="max_length", truncation=True, max_length=n, return_tensors="np"
        )
        arrays[f"ids_{n}"] = encoded["input_ids"].astype(np.int32)
        arrays[f"mask_{n}"] = encoded["attention_mask"].astype(np.int32)
    return arrays
