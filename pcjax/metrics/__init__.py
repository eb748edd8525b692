"""Metrics of a representation, as pure functions."""

from pcjax.metrics.coherence import Coherence, Estimate, coherence
from pcjax.metrics.neighbours import (
    Neighbours,
    knn_accuracy,
    knn_predict,
    nearest,
    same_results,
    vote,
)
from pcjax.metrics.probes import Probe, linear_probe
from pcjax.metrics.retrieval import Retrieval, retrieval
from pcjax.metrics.similarity import linear_cka, pair_agreement

__all__ = [
    "Coherence",
    "Estimate",
    "Neighbours",
    "Probe",
    "Retrieval",
    "coherence",
    "knn_accuracy",
    "knn_predict",
    "linear_cka",
    "linear_probe",
    "nearest",
    "pair_agreement",
    "retrieval",
    "same_results",
    "vote",
]
