"""Test the report of a comparison, drawn from made-up numbers."""

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
    links = [link["href"] for link in page.all("a") if "report.html" in link["href"]]
    # A row of the table links to the first seed, and every run is listed below it.
    seeds = {label: ["0", "0", "1", "2"] for label in comparison["losses"]}
    assert sorted(links) == sorted(f"runs/{x}/{s}/report.html" for x in seeds for s in seeds[x])
    # Three columns, each with means and differences; time and memory; a training panel each.
    assert len(page.all("svg")) == 3 + 3 + 2 + 4
    assert "diverged" not in text
    assert "Difference to perception: 3 of 3 losses are clearly lower." in text
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
    # The surviving runs may be the lucky ones.
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
    assert text.count("too few seeds for an interval.</figcaption>") == 3
    assert "are clearly lower" not in text


def test_names_stay_text(tmp_path):
    label = '<script>alert("$x$")<!--'
    write_comparison(tmp_path, labels=("a", label))
    page, _ = checked(tmp_path)
    assert label in " ".join(page.texts["th"])


def test_a_name_outside_of_the_folder_is_refused(tmp_path):
    folder = tmp_path / "comparison"
    comparison = write_comparison(folder, labels=("a", "b"))
    comparison["losses"]["../../elsewhere"] = comparison["losses"].pop("a")
    _io.write_signed(folder / "comparison.json", comparison)
    with pytest.raises(RequestError, match=r"elsewhere.* lead"):
        page_of(folder)


def test_without_a_finished_run_there_is_a_page(tmp_path):
    write_comparison(tmp_path, labels=("a", "b"), seeds=1, diverged={("a", 0), ("b", 0)})
    page, text = checked(tmp_path)
    assert page.texts["p"][0] == "No run is finished."
    assert "Some runs diverged" in text
    assert page.texts["h2"][-1] == "Representations"
    assert not any("report.html" in link["href"] for link in page.all("a"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"losses": {}}', '{"losses": [1]}'])
def test_a_damaged_comparison_is_refused(text, tmp_path):
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(RequestError, match="repeat the comparison's command"):
        page_of(tmp_path)


def test_every_run_lists_all_metrics(tmp_path):
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
    assert page.texts["h2"][-3:] == ["Representations", "Neighbours", "Confusion"]
    assert page.texts["h3"] == ["Maps", "Coherence per anchor", "Rank against rank"]
    alternatives = [drawing["aria-label"] for drawing in page.all("svg")]
    for text, names in (
        ("as {} sees them, 10 classes", ["the teacher", "same", "one"]),
        ("Histogram of {}'s", ["same", "one"]),
        ("Density of {}'s ranks", ["same", "one"]),
        ("Confusion of 10 classes as {} sees", ["the teacher", "same", "one"]),
    ):
        shown = [x for x in alternatives if any(text.format(name) in x for name in names)]
        assert len(shown) == len(names)
        # "one" comes last as a seed diverged. Its student equals that of "same".
        assert shown[-1] == shown[-2].replace(" same", " one")
    # Four examples, each with six neighbours by three models.
    assert len(page.all("img")) == 4 * (1 + 3 * 6)
    assert "Not drawn, as no run is finished: missing." in page.texts["p"]


def test_the_numbers_of_a_student_are_those_of_its_features(students):
    page, *features = students
    # The sample holds all of so few examples.
    angles = [x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in features]
    near = [1 - x @ x.T for x in angles]
    coherence = [
        stats.spearmanr(*(np.delete(d[i], i) for d in near)).statistic
        for i in range(len(features[0]))
    ]
    assert f"{np.median(coherence):.3f}" in page.texts["td"]
    assert f"{np.quantile(coherence, 0.1):.3f}" in page.texts["td"]
    assert f"median {np.median(coherence):.3f}" in page.texts["small"]


def test_the_page_holds_the_config(tmp_path):
    write_comparison(tmp_path, labels=("a", "b"))
    page, _ = checked(tmp_path)
    assert json.loads(page.texts["pre"][0]) == {"training": {"steps": 500}}
