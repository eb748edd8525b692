"""The report of a comparison, from folders with numbers that are made up."""

import json

import pytest
from reading import check
from synthetic import METRICS, write_comparison

from pcjax import cli


def page_of(folder):
    cli.main(["report", str(folder)])
    text = (folder / "report.html").read_text()
    return check(text), text


def test_every_loss_with_mean_interval_and_mark(tmp_path):
    found = write_comparison(tmp_path)
    page, text = page_of(tmp_path)
    cells = set(page.texts["td"])
    for loss in found["losses"].values():
        for metric, scale in (("knn_accuracy", 100), ("spearman", None)):
            parts = [loss["summary"][metric][part] for part in ("mean", "low", "high")]
            mean, low, high = (f"{100 * part:.1f} %" if scale else f"{part:.3f}" for part in parts)
            assert f"{mean}{low.removesuffix(' %')}\N{EN DASH}{high}" in cells
    rows = page.texts["th"]
    assert "crdclass-aware" in rows
    assert "perception" in rows
    assert (
        rows.index("perception")
        < rows.index("rkd")
        < rows.index("crdclass-aware")
        < rows.index("kdclass-aware")
    )
    # one chart a metric with intervals, one with the differences, time and memory, and a panel a loss
    assert len(page.all("svg")) == 3 + 3 + 2 + 4
    assert "diverged" not in text
    best = max(
        found["losses"], key=lambda label: found["losses"][label]["summary"]["knn_accuracy"]["mean"]
    )
    assert f"Difference to {best} in points: 3 of 3 losses lie below it" in text


def test_runs_that_diverged_are_named(tmp_path):
    write_comparison(tmp_path, diverged={("rkd", 1), ("kd", 0), ("kd", 1), ("kd", 2)})
    page, _ = page_of(tmp_path)
    said = next(text for text in page.texts["p"] if "diverged" in text)
    assert "rkd (seed 1)" in said
    assert "kd (seeds 0, 1, 2)" in said
    assert "rkd1 of 3 diverged" in page.texts["th"]
    assert "kdclass-aware, 3 of 3 diverged" in page.texts["th"]
    # Of those that are left some may be the lucky ones.
    assert page.texts["th"].index("crdclass-aware") < page.texts["th"].index("rkd1 of 3 diverged")
    assert page.texts["td"].count("diverged") == 4


def test_one_seed_has_no_interval_and_one_loss_no_difference(tmp_path):
    write_comparison(tmp_path, labels=("only",), seeds=1)
    page, text = page_of(tmp_path)
    assert "There are no two losses" in text
    assert len(page.all("svg")) == 3 + 2 + 1


def test_differences_of_one_seed_are_not_called_clear(tmp_path):
    write_comparison(tmp_path, seeds=1)
    _, text = page_of(tmp_path)
    assert text.count("of one seed, without an interval.</figcaption>") == 3
    assert "whole interval" not in text


def test_names_stay_text_and_lead_nowhere(tmp_path):
    outside = tmp_path / "elsewhere" / "0"
    outside.mkdir(parents=True)
    (outside / "metrics.jsonl").write_text(json.dumps({"step": 7, "validation_coherence": 0.123}))
    folder = tmp_path / "comparison"
    folder.mkdir()
    label = '<script>alert("$x$")</script>'.replace("/", "")
    found = write_comparison(folder, labels=("a", label))
    found["losses"]["../../elsewhere"] = found["losses"].pop("a")
    found["primary"] = '"><script>'
    for loss in found["losses"].values():
        loss["summary"]['"><script>'] = {"mean": 0.5, "low": None, "high": None, "n": 1}
    (folder / "comparison.json").write_text(json.dumps(found))
    page, text = page_of(folder)
    assert label in " ".join(page.texts["th"])
    assert "../../elsewhere: curves of validation coherence, never judged" in text


def test_where_nothing_is_finished_there_is_a_page(tmp_path):
    write_comparison(tmp_path, labels=("a", "b"), seeds=1, diverged={("a", 0), ("b", 0)})
    page, text = page_of(tmp_path)
    assert "No run is finished" in text
    assert page.texts["h2"][-1] == "Spaces"


def test_where_the_config_is_missing_the_rest_is_drawn(tmp_path):
    write_comparison(tmp_path, labels=("a", "b"), seeds=1)
    page, _ = page_of(tmp_path)
    assert any("spaces are not drawn: no run in" in text for text in page.texts["p"])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"losses": {}}', '{"losses": [1]}', '{"losses": {"a": 1}}']
)
def test_a_damaged_comparison_is_refused_in_one_line(text, tmp_path, capsys):
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["report", str(tmp_path)])
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert "give the comparison's command again" in complaint
    assert not (tmp_path / "report.html").exists()


def test_all_metrics_are_among_every_run(tmp_path):
    found = write_comparison(tmp_path)
    page, _ = page_of(tmp_path)
    runs = found["losses"]["kd"]["runs"]
    for run in runs.values():
        for metric in METRICS:
            value = run["metrics"][metric]
            assert (
                f"{100 * value:.1f} %" if "accuracy" in metric else f"{value:.3f}"
            ) in page.texts["td"]
