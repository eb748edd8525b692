"""The arithmetic of a comparison, against SciPy."""

import pytest
from scipy import stats

from pcjax.evaluation import Outcome, summary

KNN = "knn_accuracy"


def outcome(value=None):
    status, metrics = ("diverged", {}) if value is None else ("done", {KNN: value})
    return Outcome(status, metrics, {KNN: 0.1}, {KNN: 0.99}, 0.01, None, "data", "teacher")


RUNS = {
    "a": dict(enumerate(map(outcome, [0.90, 0.92, 0.97]))),
    "b": dict(enumerate(map(outcome, [0.89, 0.90, 0.93]))),
    "c": {0: outcome(), 1: outcome(0.5)},
    "d": {0: outcome()},
}


def summarised(runs):
    return summary.summarise(runs, dict.fromkeys(runs, False))


def test_means_and_differences_are_scipys():
    losses = summarised(RUNS)["losses"]
    assert [*losses] == ["a", "b", "c", "d"]
    a, b = ([run.metrics[KNN] for run in RUNS[name].values()] for name in "ab")
    for expected, actual in (
        (stats.ttest_1samp(b, 0), losses["b"]["summary"][KNN]),
        (stats.ttest_rel(b, a), losses["b"]["paired"][KNN]),
    ):
        interval = expected.confidence_interval(0.95)
        assert (actual["low"], actual["high"]) == pytest.approx((interval.low, interval.high))
        assert actual["n"] == 3
    assert losses["b"]["paired"][KNN]["to"] == "a"
    # One common seed: its difference, without an interval.
    actual = losses["c"]["paired"][KNN]
    assert actual == {
        "to": "a",
        "mean": pytest.approx(0.5 - 0.92),
        "low": None,
        "high": None,
        "n": 1,
    }
    assert losses["d"]["summary"] == losses["d"]["paired"] == {}


def test_a_contender_that_diverged_once_is_not_the_best():
    lucky = {0: outcome(0.99), 1: outcome()}
    losses = summarised({"lucky": lucky, "a": RUNS["a"], "b": RUNS["b"]})["losses"]
    assert [*losses] == ["a", "b", "lucky"]
    assert losses["b"]["paired"][KNN]["to"] == "a"


def test_all_may_have_diverged():
    actual = summary.summarise({"d": RUNS["d"]}, {"d": True})
    assert actual["primary"] is None
    assert summary.table(actual)[1][0][:2] == ["d (labels) (1 of 1 diverged)", ""]


def test_two_seeds_have_no_interval_and_a_table_fits_80_columns():
    few = {name: {0: outcome(0.5), 1: outcome(0.6)} for name in ("perception_coherence", "rkd")}
    actual = summarised(few)
    columns, rows = summary.table(actual, short=True)
    assert not any("±" in cell for row in rows for cell in row)
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    assert sum(widths) + 3 * len(widths) + 1 <= 80


def test_an_interval_of_a_share_stays_between_0_and_1():
    wild = {0: outcome(0.99), 1: outcome(0.2), 2: outcome(0.9)}
    _, rows = summary.table(summarised({"wild": wild}))
    half = float(rows[0][1].split("±")[1].split()[0])
    assert half <= 100


def test_numbers_are_those_of_a_result():
    result = {
        KNN: 0.5,
        "linear_probe_accuracy": None,
        "parameters": 7,
        "coherence": {"spearman": {"value": 0.3, "low": 0.2, "high": 0.4}},
        "retrieval": {"recall_at_1": 0.25},
        "unseen": {"retrieval": {"recall_at_1": 0.75}, KNN: 0.6, "examples": 40, "classes": 3},
    }
    assert summary.numbers(result) == {
        KNN: 0.5,
        "coherence.spearman": 0.3,
        "retrieval.recall_at_1": 0.25,
        "unseen.retrieval.recall_at_1": 0.75,
        f"unseen.{KNN}": 0.6,
    }
