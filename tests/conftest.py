"""Shared test settings: eight CPU devices, checked shapes, no network."""

import os
import signal

# A shell that starts this in the background has SIGINT ignored, in every process below it as well.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )

from jaxtyping import install_import_hook

install_import_hook("ldm_scaling", "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def goldens():
    """Folder of the frozen outputs of reference implementations."""
    from pathlib import Path

    return Path(__file__).parent / "goldens"


@pytest.fixture(autouse=True)
def _loadable_torchvision(request):
    """transformers imports torchvision wherever it is, also where its operators do not load."""
    from importlib.util import find_spec

    if request.node.get_closest_marker("slow") and find_spec("torchvision"):
        from tests.golden_makers import _peers

        _peers.import_torchvision()
