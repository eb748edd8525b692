"""A model or its embeddings in, a table of metrics out."""

from pcjax.evaluation.evaluate import (
    Evaluated,
    NotFiniteError,
    Other,
    check_evaluation,
    coherence_score,
    evaluate,
    load_other,
    throughput,
)
from pcjax.evaluation.summary import Outcome
from pcjax.evaluation.tables import show

__all__ = [
    "Evaluated",
    "NotFiniteError",
    "Other",
    "Outcome",
    "check_evaluation",
    "coherence_score",
    "evaluate",
    "load_other",
    "show",
    "throughput",
]
