"""How big should a latent diffusion model be for the budget you have?

The public face; importing the package is cheap, and each name loads its room on first use.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm_scaling.pipeline import TextToImage as TextToImage

__version__ = "0.1.0"
__all__ = ["TextToImage", "__version__"]

_HOME_OF = {"TextToImage": "ldm_scaling.pipeline"}


def __getattr__(name: str):
    """Loads a public name from its room (PEP 562)."""
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
