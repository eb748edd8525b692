"""A model or its embeddings in, a table of metrics out."""

from pcjax.evaluation.beside import BESIDE, check_beside, evaluate_beside
from pcjax.evaluation.evaluate import (
    Evaluated,
    NotFiniteError,
    Other,
    check_evaluation,
    coherence_score,
    evaluate,
    load_other,
)
from pcjax.evaluation.summary import Outcome
from pcjax.evaluation.tables import show
from pcjax.evaluation.throughput import throughput

__all__ = [
    "BESIDE",
    "Evaluated",
    "NotFiniteError",
    "Other",
    "Outcome",
    "check_beside",
    "check_evaluation",
    "coherence_score",
    "evaluate",
    "evaluate_beside",
    "load_other",
    "show",
    "throughput",
]
