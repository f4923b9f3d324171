"""Networks that are loaded, kept frozen and conditioned on: autoencoder, text and image encoders.

All are linen modules that are called as `module.apply({"params": params}, ...)`, take NHWC arrays,
and carry the parameter names of the files they load from. Reading those files is the business of
`ldm_scaling.checkpoint`. The autoencoder alone is also trained by this library. Text encoders of
every kind are called through `encode_text`. Tokenizers are in `encoders.tokenizers`, imported by
those who tokenize.
"""

from ldm_scaling.encoders.autoencoder import Autoencoder, AutoencoderConfig, sample_posterior
from ldm_scaling.encoders.bert import Bert, BertConfig, sentence_embedding
from ldm_scaling.encoders.clip import ClipText, ClipTextConfig
from ldm_scaling.encoders.clip_vision import Clip, ClipConfig, ClipVisionConfig
from ldm_scaling.encoders.dinov2 import Dinov2, Dinov2Config
from ldm_scaling.encoders.efficientnet import EfficientNetLite0
from ldm_scaling.encoders.inception import InceptionV3
from ldm_scaling.encoders.lpips_backbones import LpipsBackbone
from ldm_scaling.encoders.t5 import T5, T5Config
from ldm_scaling.encoders.text import TextConfig, context_size, encode_text

__all__ = [
    "T5",
    "Autoencoder",
    "AutoencoderConfig",
    "Bert",
    "BertConfig",
    "Clip",
    "ClipConfig",
    "ClipText",
    "ClipTextConfig",
    "ClipVisionConfig",
    "Dinov2",
    "Dinov2Config",
    "EfficientNetLite0",
    "InceptionV3",
    "LpipsBackbone",
    "T5Config",
    "TextConfig",
    "context_size",
    "encode_text",
    "sample_posterior",
    "sentence_embedding",
]
