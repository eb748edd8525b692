"""What a representation is worth, as pure functions."""

from pcjax.metrics.coherence import Coherence, Estimate, coherence

__all__ = ["Coherence", "Estimate", "coherence"]
