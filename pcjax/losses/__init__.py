"""Losses as pure functions: student and teacher features in, one number out."""

from pcjax.losses.perception import perception_coherence

__all__ = ["perception_coherence"]
