"""The student out, as files that other programs load."""

from pcjax.export.safetensors import Exported, load

__all__ = ["Exported", "load"]
