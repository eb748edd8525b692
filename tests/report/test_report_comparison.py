"""The report of a comparison, from folders with made-up numbers."""

import json

import numpy as np
import pytest
from reading import check
from scipy import stats
from synthetic import METRICS, page_of, store_features, write_comparison

from pcjax import _io
from pcjax._checks import RequestError
from pcjax.data import load


def checked(folder, **options):
    text = page_of(folder, **options)
    return check(text), text


def test_every_loss_with_mean_interval_and_mark(tmp_path):
    comparison = write_comparison(tmp_path)
    page, text = checked(tmp_path)
    cells = set(page.texts["td"])
    for loss in comparison["losses"].values():
        for metric, scale in (("knn_accuracy", 100), ("coherence.spearman", None)):
            values = [loss["summary"][metric][part] for part in ("mean", "low", "high")]
            mean, low, high = (f"{100 * x:.1f} %" if scale else f"{x:.3f}" for x in values)
            assert f"{mean}{low.removesuffix(' %')}\N{EN DASH}{high}" in cells
    rows = [row for row in page.texts["th"] if row[:3] in ("per", "rkd", "crd", "kdc")]
    assert rows[:4] == ["perception", "rkd", "crdclass-aware", "kdclass-aware"]
    links = {link["href"] for link in page.all("a")}
    assert {f"runs/{label}/0/report.html" for label in comparison["losses"]} <= links
    # Three metrics have a column; time and memory; a panel of training for each loss.
    assert len(page.all("svg")) == 3 + 3 + 2 + 4
    assert "diverged" not in text
    assert "Difference to perception in points: 3 of 3 losses lie below it" in text
    conclusion = page.texts["p"][0]
    assert conclusion.startswith("Best by k-NN accuracy: perception")
    assert "cosine" in conclusion


def test_diverged_runs_are_named(tmp_path):
    write_comparison(tmp_path, diverged={("rkd", 1), ("kd", 0), ("kd", 1), ("kd", 2)})
    page, _ = checked(tmp_path)
    text = next(text for text in page.texts["p"] if "diverged" in text)
    assert "rkd (seed 1)" in text
    assert "kd (seeds 0, 1, 2)" in text
    rows = page.texts["th"]
    assert "kdclass-aware, 3 of 3 diverged" in rows
    # The runs that are left may be the lucky ones.
    assert rows.index("crdclass-aware") < rows.index("rkd1 of 3 diverged")
    assert page.texts["td"].count("diverged") == 4


def test_one_seed_has_no_interval_and_one_loss_no_difference(tmp_path):
    write_comparison(tmp_path, labels=("only",), seeds=1)
    page, text = checked(tmp_path)
    assert "There are no two losses" in text
    assert len(page.all("svg")) == 3 + 2 + 1


def test_differences_of_one_seed_are_not_called_clear(tmp_path):
    write_comparison(tmp_path, seeds=1)
    _, text = checked(tmp_path)
    assert text.count("one seed, without an interval.</figcaption>") == 3
    assert "whole interval" not in text


def test_names_stay_text(tmp_path):
    label = '<script>alert("$x$")<!--'
    write_comparison(tmp_path, labels=("a", label))
    page, _ = checked(tmp_path)
    assert label in " ".join(page.texts["th"])


def test_names_lead_nowhere(tmp_path):
    folder = tmp_path / "comparison"
    comparison = write_comparison(folder, labels=("a", "b"))
    comparison["losses"]["../../elsewhere"] = comparison["losses"].pop("a")
    _io.write_signed(folder / "comparison.json", comparison)
    with pytest.raises(RequestError, match=r"elsewhere.* lead"):
        page_of(folder)


def test_without_a_finished_run_there_is_a_page(tmp_path):
    write_comparison(tmp_path, labels=("a", "b"), seeds=1, diverged={("a", 0), ("b", 0)})
    page, text = checked(tmp_path)
    assert "No run is finished" in text
    assert page.texts["h2"][-1] == "Spaces"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"losses": {}}', '{"losses": [1]}'])
def test_a_damaged_comparison_is_refused(text, tmp_path):
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(RequestError, match="repeat the comparison's command"):
        page_of(tmp_path)


def test_all_metrics_are_among_every_run(tmp_path):
    comparison = write_comparison(tmp_path)
    page, _ = checked(tmp_path)
    for run in comparison["losses"]["kd"]["runs"].values():
        for metric in METRICS:
            value = run["metrics"][metric]
            text = f"{100 * value:.1f} %" if "accuracy" in metric else f"{value:.3f}"
            assert text in page.texts["td"]


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """Draw one student under two names, and a third loss without features."""
    folder = tmp_path_factory.mktemp("students")
    write_comparison(folder, ("one", "same", "missing"), seeds=2, diverged={("one", 0)})
    dataset = load("digits", part=0.3)
    random = np.random.default_rng(0)
    teacher = random.normal(size=(len(dataset.test), 6)).astype(np.float32)
    student = (teacher[:, :3] + random.normal(size=(len(teacher), 3))).astype(np.float32)
    store_features(folder, "one", 1, student)
    store_features(folder, "same", 0, student)
    return checked(folder, dataset=dataset, teacher=teacher)[0], student, teacher


def test_students_side_by_side(students):
    page = students[0]
    assert page.texts["h2"][-3:] == ["Spaces", "Neighbours", "Confusion"]
    assert page.texts["h3"] == ["Maps", "Coherence per anchor", "Rank against rank"]
    alternatives = [drawing["aria-label"] for drawing in page.all("svg")]
    for text, names in (
        ("as {} sees them, 10 classes", ["the teacher", "same", "one"]),
        ("Histogram of {}'s", ["same", "one"]),
        ("Density of {}'s ranks", ["same", "one"]),
        ("Confusion of 10 classes as {} sees", ["the teacher", "same", "one"]),
    ):
        shown = [one for one in alternatives if any(text.format(name) in one for name in names)]
        assert len(shown) == len(names)
        # A seed of "one" diverged, so it comes last; the student is the same.
        assert shown[-1] == shown[-2].replace(" same", " one")
    # Four examples, and six nearest of each by three models.
    assert len(page.all("img")) == 4 * (1 + 3 * 6)
    assert "Not drawn, as no run is finished: missing." in page.texts["p"]


def test_the_numbers_of_a_student_are_those_of_its_features(students):
    page, *features = students
    # The stored features are a sample; so few examples are all sampled.
    angles = [x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in features]
    near = [1 - x @ x.T for x in angles]
    coherence = [
        stats.spearmanr(*(np.delete(d[i], i) for d in near)).statistic
        for i in range(len(features[0]))
    ]
    assert f"{np.median(coherence):.3f}" in page.texts["td"]
    assert f"{np.quantile(coherence, 0.1):.3f}" in page.texts["td"]
    assert f"median {np.median(coherence):.3f}" in page.texts["small"]


def test_the_config_is_there_to_read(tmp_path):
    write_comparison(tmp_path, labels=("a", "b"))
    page, _ = checked(tmp_path)
    assert json.loads(page.texts["pre"][0]) == {"training": {"steps": 500}}
