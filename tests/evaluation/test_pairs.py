"""Rated pairs of texts: every row is checked, and the metric is None where it is undefined."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from pcjax import metrics
from pcjax._checks import RequestError
from pcjax.config import Data, Evaluation
from pcjax.data import load, tokens
from pcjax.evaluation import Other, load_other

pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from small_texts import SENTENCES, wordpiece

ROWS = [
    (left, right, 5 - n / 2)
    for n, (left, right) in enumerate(zip(SENTENCES, SENTENCES[::-1], strict=True))
]


@pytest.fixture
def data(tmp_path):
    (tmp_path / "x.txt").write_text("\n".join([*SENTENCES, *(f"cat {n}" for n in range(12))]))
    vocabulary = tokens.vocabulary(wordpiece(), limit=8, width=8, where="it")
    return tokens.tokenised(load(f"text:{tmp_path / 'x.txt'}"), vocabulary)


def pairs_of(path, data):
    return load_other(Evaluation(pairs=str(path)), data, Data())


def write(path, rows):
    lines = [
        json.dumps(dict(zip(("sentence1", "sentence2", "score"), row, strict=False)))
        for row in rows
    ]
    path.write_text("\n\n".join(lines))  # blank lines are no rows


@pytest.mark.parametrize("suffix", [".jsonl", ".tsv"])
def test_pairs_are_read_in_their_order(suffix, data, tmp_path):
    path = tmp_path / f"pairs{suffix}"
    if suffix == ".tsv":
        table = [("score", "sentence2", "sentence1"), *(row[::-1] for row in ROWS)]
        path.write_text("".join("\t".join(map(str, row)) + "\n" for row in table))
    else:
        write(path, ROWS)
    pairs = pairs_of(path, data).pairs
    assert pairs.scores.tolist() == [score for _, _, score in ROWS]
    store = pairs.texts.test.store
    read = [store.texts.text(row) for row in pairs.texts.test.rows.tolist()]
    assert read == [*SENTENCES, *SENTENCES[::-1]]
    assert pairs.texts.vocabulary.tokenizer == data.vocabulary.tokenizer


def test_without_a_file_there_are_no_pairs(data):
    assert load_other(Evaluation(), data, Data()) == Other(None, None)


def changed(position, value):
    """Return rows of which the fourth, in line 7, has another value."""
    row = [*ROWS[3]]
    row[position] = value
    return [*ROWS[:3], row, *ROWS[4:]]


FAULTS = {
    "no score": (changed(2, None), "line 7: 'score' must hold a finite number, and it holds None$"),
    "NaN": (
        changed(2, float("nan")),
        "line 7: 'score' must hold a finite number, and it holds nan$",
    ),
    "infinite": (
        changed(2, float("inf")),
        "line 7: 'score' must hold a finite number, and it holds i",
    ),
    "a word": (
        changed(2, "high"),
        "line 7: 'score' must hold a finite number, and it holds 'high'$",
    ),
    "a truth": (changed(2, True), "line 7: 'score' must hold a finite number, and it holds True$"),
    "a list": (changed(2, [1]), r"line 7: 'score' must hold a finite number, and it holds \[1\]$"),
    "no text": (changed(0, None), "line 7: 'sentence1' must hold a text, and it holds None$"),
    "a number": (changed(1, 5), "line 7: 'sentence2' must hold a text, and it holds 5$"),
    "constant": ([(*row[:2], 2) for row in ROWS], "all scores are 2; give pairs that differ$"),
    "few": (ROWS[:3], "has 3 pairs; give 4 or more$"),
    "empty": ([], "has 0 pairs; give 4 or more$"),
    "no column": ([("a", "b")], "line 1 has no column 'score': it has 'sentence1', 'sentence2'$"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused_in_one_line(fault, data, tmp_path):
    rows, reason = FAULTS[fault]
    write(tmp_path / "x.jsonl", rows)
    with pytest.raises(RequestError, match=rf"^evaluation\.pairs: .*x\.jsonl.* {reason}") as caught:
        pairs_of(tmp_path / "x.jsonl", data)
    assert "\n" not in str(caught.value)


def test_other_files_and_examples_are_refused(data, tmp_path):
    (tmp_path / "empty.csv").write_text("sentence1,sentence2,score\na,,3\n")
    with pytest.raises(RequestError, match=r"empty\.csv, line 2: 'sentence2' must hold a text"):
        pairs_of(tmp_path / "empty.csv", data)
    with pytest.raises(RequestError, match=r"x\.txt has no columns; give a \.csv, \.tsv, "):
        pairs_of(tmp_path / "x.txt", data)
    with pytest.raises(RequestError, match=r"none\.csv: no such file; expected texts"):
        pairs_of(tmp_path / "none.csv", data)
    (tmp_path / "latin.csv").write_bytes("sentence1,sentence2,score\nä,b,3".encode("latin1"))
    with pytest.raises(RequestError, match=r"latin\.csv is not UTF-8"):
        pairs_of(tmp_path / "latin.csv", data)
    with pytest.raises(RequestError, match="pairs of texts need examples that are texts; leave"):
        pairs_of(tmp_path / "latin.csv", load("digits"))


def test_agreement_is_spearmans_and_none_where_it_is_undefined(rng):
    left, right = rng.normal(size=(2, 30, 5))
    scores = rng.integers(0, 6, 30)
    cosines = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(left, right, strict=True)
    ]
    expected = spearmanr(cosines, scores)[0]
    assert metrics.pair_agreement(left, right, scores) == pytest.approx(expected)
    # Warnings are errors here: SciPy would print one.
    assert metrics.pair_agreement(left, right, np.ones(30)) is None
    assert metrics.pair_agreement(np.ones((30, 5)), np.ones((30, 5)), scores) is None
    assert metrics.pair_agreement(left * np.nan, right, scores) is None
