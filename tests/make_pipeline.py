"""Makes a small pipeline as Stable Diffusion 2.x is one, and a small CLIP, both of random weights.

    python tests/make_pipeline.py FOLDER

FOLDER/sd2 is what diffusers saves and FOLDER/clip what transformers does: they stand in for what
would have to be downloaded. What they draw is noise. Needs torch, diffusers and transformers.
"""

import sys
import tempfile
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.encoders.vocabularies import write_clip
from tests.golden_makers import _peers

TEXT = {
    "vocab_size": 514, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "hidden_act": "gelu", "bos_token_id": 512, "eos_token_id": 513,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "hidden_act": "gelu", "image_size": 32, "patch_size": 8,
}  # fmt: skip


def make_pipeline(prediction_type: str):
    """diffusers' pipeline: small networks of random weights, otherwise as Stable Diffusion 2."""
    import torch

    _peers.import_torchvision()
    import diffusers
    import transformers

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4),
        cross_attention_dim=24,
        use_linear_projection=True,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT))
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    with tempfile.TemporaryDirectory() as folder:
        write_clip(Path(folder), [], "!")
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    made = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def save_clip(folder: Path) -> None:
    """transformers' CLIPModel and its tokenizer."""
    import torch

    _peers.import_torchvision()
    import transformers

    torch.manual_seed(1)
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    write_clip(folder, [], "<|endoftext|>")


def main(folder: Path) -> None:
    make_pipeline("v_prediction").save_pretrained(folder / "sd2")
    save_clip(folder / "clip")
    print(f"{folder / 'sd2'} and {folder / 'clip'}: random weights")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
