"""Networks that are loaded, kept frozen and conditioned on: autoencoder, text and image encoders.

All are linen modules that are called as `module.apply({"params": params}, ...)`, take NHWC arrays,
and carry the parameter names of the files they load from. Reading those files is the business of
`ldm_scaling.checkpoint`. The autoencoder alone is also trained by this library. Tokenizers are in
`encoders.tokenizers`, imported by those who tokenize.
"""

from ldm_scaling.encoders.autoencoder import Autoencoder, AutoencoderConfig, sample_posterior
from ldm_scaling.encoders.bert import Bert, BertConfig, sentence_embedding
from ldm_scaling.encoders.efficientnet import EfficientNetLite0
from ldm_scaling.encoders.inception import InceptionV3
from ldm_scaling.encoders.lpips_backbones import LpipsBackbone

__all__ = [
    "Autoencoder",
    "AutoencoderConfig",
    "Bert",
    "BertConfig",
    "EfficientNetLite0",
    "InceptionV3",
    "LpipsBackbone",
    "sample_posterior",
    "sentence_embedding",
]
