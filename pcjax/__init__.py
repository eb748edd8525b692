"""pcjax transfers the representation of a large teacher to a lightweight student."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pcjax import (  # noqa: F401
        config,
        data,
        dissimilarity,
        export,
        losses,
        metrics,
        models,
        ranking,
    )
    from pcjax.export.safetensors import load

__version__ = "0.1.0"

# Sub-modules are imported when they are first used: the losses need neither Flax nor Grain.
_SUBMODULES = (
    "config", "data", "dissimilarity", "export", "losses", "metrics", "models", "ranking",
)  # fmt: skip

__all__ = ["__version__", "load", *_SUBMODULES]


def __getattr__(name: str) -> Any:
    """Import a sub-module, or `load`, on first use."""
    if name == "load":
        return importlib.import_module("pcjax.export.safetensors").load
    if name in _SUBMODULES:
        return importlib.import_module(f"pcjax.{name}")
    raise AttributeError(f"module 'pcjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
