"""Pairs of texts that people rated, from a file."""

import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from pcjax._checks import RequestError
from pcjax.data import Dataset, Examples, texts
from pcjax.data.tokens import tokenised

COLUMNS = ("sentence1", "sentence2", "score")
MIN_PAIRS = 4  # that a correlation can be estimated from


class Pairs(NamedTuple):
    """Pairs of texts and how similar people find them.

    texts: both texts of every pair, first all left ones, as the student reads them.
    scores: (n,) higher is more similar.
    """

    texts: Dataset
    scores: np.ndarray


def load_pairs(source: str, dataset: Dataset) -> Pairs:
    """Load the pairs of a file as the student reads them.

    Args:
      source: a .csv, .tsv, .jsonl or .parquet file with the columns sentence1, sentence2 and score.
      dataset: the texts that the student is trained on.
    """
    try:
        if dataset.vocabulary is None:
            raise RequestError("pairs of texts need examples that are texts; leave it out")
        return _read(pathlib.Path(source).expanduser(), dataset)
    except RequestError as error:
        raise RequestError(f"evaluation.pairs: {error}") from error


def _read(path: pathlib.Path, dataset: Dataset) -> Pairs:
    texts.require_file(path)
    if path.suffix.lower() == ".txt":
        raise RequestError(
            f"{path} has no columns; give a .csv, .tsv, .jsonl or .parquet file with "
            f"{', '.join(COLUMNS)}"
        )
    left, right, scores = [], [], []
    for number, (first, second, score) in texts.numbered_rows(path, COLUMNS):
        where = texts.place(path, number)
        for column, text in zip(COLUMNS, (first, second), strict=False):
            if not isinstance(text, str):
                raise RequestError(f"{where}: {column!r} must hold a text, and it holds {text!r}")
        left.append(first)
        right.append(second)
        scores.append(_score(where, score))
    if len(scores) < MIN_PAIRS:
        raise RequestError(f"{path} has {len(scores)} pairs; give {MIN_PAIRS} or more")
    if len(set(scores)) == 1:
        raise RequestError(f"{path}: all scores are {scores[0]:g}; give pairs that differ")
    store = texts.in_memory([*left, *right])
    whole = Examples(store, np.arange(len(store)))
    one = Dataset(str(path), whole, whole, whole)
    return Pairs(tokenised(one, dataset.vocabulary), np.array(scores, np.float64))


def _score(where: str, value: Any) -> float:
    try:
        score = math.nan if value is None or isinstance(value, bool) else float(value)
    except (ValueError, TypeError):
        score = math.nan
    if not math.isfinite(score):
        raise RequestError(
            f"{where}: 'score' must hold a finite number, and it holds {value!r:.80}"
        )
    return score
