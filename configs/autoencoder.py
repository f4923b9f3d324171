"""Training of a KL autoencoder: `configs/autoencoder.py:micro` or `:sd`."""

from ml_collections import ConfigDict

from ldm_scaling.naming import check_name

# block_out_channels, layers_per_block, latent_channels, norm_groups, image size, batch size
SIZES = {
    "micro": ((16, 32, 64, 64), 1, 16, 8, 64, 16),
    "sd": ((128, 256, 512, 512), 2, 4, 32, 256, 96),
}


def get_config(size: str = "micro") -> ConfigDict:
    sizes = SIZES[check_name("autoencoder", size, SIZES)]
    channels, layers, latent_channels, groups, image_size, batch_size = sizes
    config = ConfigDict()
    config.task = "autoencoder"
    config.family = size
    config.seed = 0
    config.model = {
        "block_out_channels": channels,
        "layers_per_block": layers,
        "latent_channels": latent_channels,
        "norm_groups": groups,
    }
    config.loss = {"kl": 1e-3 if size == "micro" else 1e-6, "gradient": 1.0, "coarse": 0.5}
    config.data = {
        "name": "noto_emoji",
        "train_split": "train",
        "validation_split": "test",  # "": none
        "image_size": image_size,
        "flip": 0.5,
        "workers": 0,
    }

    config.batch_size = batch_size
    config.accumulate = 1
    config.num_steps = 5000 if size == "micro" else 300_000
    config.optimizer = {
        "learning_rate": 1.5e-3 if size == "micro" else 1e-4,
        "warmup_steps": 200,
        "decay": "cosine",
        "b1": 0.9,
        "b2": 0.99,
        "eps": 1e-8,
        "mu_dtype": "float32",  # of the first moment; "bfloat16" saves 2 bytes a parameter
        "weight_decay": 0.01,
        "clip_norm": 1.0,
    }
    config.optimizer.decay_steps = config.get_oneway_ref("num_steps")
    config.ema_decay = 0.999
    config.max_bad_steps = 10

    config.mesh = {"replica": 1, "fsdp": -1, "tensor": 1}
    config.tpu_options = ""  # of the TPU's compiler, for the step: "name=value,name=value"
    config.log_every = 50
    config.eval_every = 1000
    config.eval_batches = 8
    config.checkpoint_every = 500
    config.keep_checkpoints = 2
    config.export_every = 0
    config.export_steps = ()
    config.profile_every = 0
    # Compiled programs: "workdir", "off", or a folder for several runs to share.
    config.compilation_cache = "workdir"
    return config
