"""What made a record."""

import platform
import time
from importlib.metadata import version
from typing import Any

import jax

from ldm_scaling import __version__


def provenance(seconds: dict[str, float]) -> dict[str, Any]:
    """What made a record: versions, machine, time of day (UTC) and durations."""
    packages = ("jax", "jaxlib", "flax", "numpy", "scipy")
    return {
        "versions": {"ldm_scaling": __version__, **{name: version(name) for name in packages}},
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }
