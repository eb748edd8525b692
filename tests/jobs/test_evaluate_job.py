"""`pcjax evaluate`: more evaluations of a finished run."""

import json

import numpy as np
import pytest
from small import QUICK

from pcjax.config import Evaluation
from pcjax.evaluation import Evaluated
from pcjax.jobs.evaluate import Extras, merged
from pcjax.overrides import decode_options


def test_earlier_results_on_pairs_stay_until_others_replace_them():
    before = {"student": {"knn_accuracy": 0.5, "pairs": 0.25}}
    new = {"student": {"knn_accuracy": 0.75, "pairs": None}}
    kept = merged(before, Evaluated(new, {}), rated=False)
    assert kept == {"student": {"knn_accuracy": 0.75, "pairs": 0.25}}
    assert merged(before, Evaluated(new, {}), rated=True) == new
    section = Extras(pairs="x.csv").added_to(Evaluation(other="digits"))
    assert section == Evaluation(other="digits", pairs="x.csv")


@pytest.mark.gate
@pytest.mark.parametrize("together", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_everything_about_a_run(together, tmp_path, command):
    """Trained without three classes, evaluated there, on other data and on corrupted images."""
    rng = np.random.default_rng(1)
    labels = np.arange(80) % 4
    patterns = np.kron(rng.integers(0, 200, (4, 2, 2, 3)), np.ones((1, 6, 6, 1), int))
    images = (patterns[labels] + rng.integers(0, 50, (80, 12, 12, 3))).astype(np.uint8)
    np.savez(tmp_path / "other.npz", images=images, labels=labels)
    source = f"arrays:{tmp_path / 'other.npz'}"
    run = tmp_path / "run"
    assert command("distill", *QUICK, "--data.unseen", 3, "--workdir", run)[0] == 0
    first = json.loads((run / "result.json").read_text())
    assert {first[name]["unseen"]["classes"] for name in ("teacher", "student")} == {3}
    # Without a name --corruptions means all, which another test computes.
    assert decode_options(Extras, {"corruptions": []}).corruptions == ()
    more, speed = ["--corruptions", "contrast", "--other", source], ["--throughput"]
    for words in [more + speed] if together else [more, speed]:
        status, output, complaint = command("evaluate", run, *words)
        assert status == 0, complaint
        count = first["student"]["unseen"]["examples"]
        assert f"on {count} test examples of 3 classes that no training saw" in output
    result = json.loads((run / "result.json").read_text())
    for name in ("teacher", "untrained", "student"):
        more = {key: value for key, value in result[name].items() if key not in first[name]}
        assert more.keys() == {"corruptions", "other", "throughput"}
        assert more["corruptions"].keys() == {"clean", "contrast", "mean"}
        assert more["other"].keys() == {source}
        assert {key: result[name][key] for key in first[name]} == first[name]
    assert result["seconds"] == first["seconds"]
    assert "corrupted images: contrast" in (run / "report.html").read_text()
    # Its features serve where the same classes are left out, and nowhere else.
    assert command("embed", run)[0] == 0
    with np.load(run / "features.npz") as stored:
        assert len(stored["unseen"]) == first["student"]["unseen"]["examples"]
    words = [*QUICK, "--teacher.features", run / "features.npz"]
    for unseen in (0, 2):
        other = ["--data.unseen", unseen, "--workdir", tmp_path / "other"]
        status, _, complaint = command("distill", *words, *other)
        assert (status, complaint.count("\n")) == (2, 1)
        assert "it belongs to other data or another split" in complaint
    same = ["--data.unseen", 3, "--workdir", tmp_path / "three"]
    assert command("distill", *words, *same)[0] == 0
