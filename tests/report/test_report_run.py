"""The reports of runs, written by the command and read by a parser."""

import html
import json
import shutil
import sys

import numpy as np
import pytest
from children import everything_in
from pcjax.jobs.prepare import load
from reading import check
from scipy import stats
from sklearn.datasets import load_digits
from synthetic import compared_from

from pcjax import cli, data
from pcjax.jobs.distill import find_teacher
from pcjax.jobs.evaluate import model_of
from pcjax.report import formatting as words
from pcjax.run import config_of
from pcjax.training.embedding import represent

NASTY = [
    "<script>alert(1)</script>",
    "a&b",
    '"',
    "$x_1$",
    "é",
    "</style>",
    "\u6570\u5b57",
    "a name that is longer than fits",
    "-->",
    "]]>",
]
SMALL = [
    # As many features each: what judges them is compiled once.
    *(
        "--teacher.model.widths",
        "16",
        "--teacher.model.features",
        "4",
        "--teacher.training.steps",
        "4",
    ),
    *("--student.widths", "8", "--student.features", "4", "--training.steps", "4"),
    *("--training.batch", "64", "--teacher.training.batch", "64", "--training.devices", "1"),
    *("--teacher.training.devices", "1", "--training.save-every", "2", "--training.log-every", "2"),
]


def page_of(folder):
    cli.main(["report", str(folder)])
    text = (folder / "report.html").read_text()
    return check(text), text


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Digits whose classes have names that would break a page."""
    folder = tmp_path_factory.mktemp("run")
    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)[:600, ..., None]
    np.savez(
        folder / "named.npz", images=images, labels=digits.target[:600], classes=np.array(NASTY)
    )
    cli.main(
        [
            "distill",
            *SMALL,
            "--data.source",
            f"arrays:{folder / 'named.npz'}",
            "--workdir",
            str(folder / "run"),
        ]
    )
    return folder / "run"


@pytest.fixture(scope="module")
def written(run):
    return page_of(run)


def test_a_run_as_a_page(run, written):
    before = everything_in(run)
    page, text = page_of(run)
    assert everything_in(run) == before
    assert text == written[1]
    assert page.texts["h2"] == [
        "Results",
        "Training",
        "Coherence",
        "Maps",
        "Neighbours",
        "Confusion",
    ]
    # loss and coherence of the student, loss and accuracy of the teacher, a histogram, two densities, three maps
    assert len(page.all("svg")) == 2 + 2 + 1 + 2 + 3
    assert {attributes["alt"].split(", class ")[0][:12] for attributes in page.all("img")} == {
        "test example"
    }
    # rows of a query and twice six neighbours
    assert len(page.all("img")) == 12 * 13
    names = page.texts["th"]
    assert all(name in names for name in NASTY)


def test_metrics_are_numbers_and_names_are_text(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    lines = [
        '{"step": 1, "loss": null, "x": 0.5}',
        '{"step": 2, "loss": null, "validation_\\"><script>": 0.5}',
        '{"step": 3, "loss": NaN}',
        '{"step": 3, "loss": "<b>"}',
        '{"st',
    ]
    (copy / "metrics.jsonl").write_text("\n".join(lines))
    page, text = page_of(copy)
    assert "metrics.jsonl of the student: 3 lines are not as they were written" in text
    alternatives = [drawing["aria-label"] for drawing in page.all("svg")]
    assert "Curve of the student's loss over the steps: loss never finite." in alternatives
    assert any('"><script> on validation examples' in text for text in alternatives)


def test_every_number_of_the_result_is_in_the_table(run, written):
    page, _ = written
    result = json.loads((run / "result.json").read_text())
    shown = page.texts["td"]
    for who in ("teacher", "untrained", "student"):
        found = result[who]
        assert f"{found['parameters']:,}" in shown
        assert f"{found['flops']:,}" in shown
        for accuracy in ("knn_accuracy", "linear_probe_accuracy"):
            assert f"{100 * found[accuracy]:.1f} %" in shown
        for degree in found["coherence"].values():
            value, low, high = (
                words.number("coherence", degree[part]) for part in ("value", "low", "high")
            )
            between = " to " if degree["low"] < 0 else "\N{EN DASH}"
            assert f"{value}{low}{between}{high}" in shown
    said = page.texts["p"][0]
    assert f"{result['steps']} steps" in said
    assert f"{result['seconds']} seconds" in said
    assert all(f"{name} {version}" in said for name, version in result["versions"].items())
    assert result.pop("digest")
    assert json.dumps(result, indent=1) in html.unescape((run / "report.html").read_text())


def test_the_confusion_is_that_of_the_accuracy(run, written):
    page, _ = written
    accuracy = json.loads((run / "result.json").read_text())["student"]["knn_accuracy"]
    assert any(
        f"student after: {100 * accuracy:.1f} % of" in text for text in page.texts["caption"]
    )


def test_vectors_without_labels_and_a_teacher_known_by_its_features(tmp_path):
    random = np.random.default_rng(0)
    np.save(tmp_path / "plain.npy", random.normal(size=(600, 6)).astype(np.float32))
    source = f"arrays:{tmp_path / 'plain.npy'}"
    loaded = data.load(source)
    splits = {
        split: random.normal(size=(len(getattr(loaded, split)), 4))
        for split in ("train", "validation", "test")
    }
    np.savez(tmp_path / "teacher.npz", fingerprint=np.array(loaded.fingerprint), **splits)
    given = ["--data.source", source, "--teacher.features", str(tmp_path / "teacher.npz")]
    cli.main(["distill", *SMALL, *given, "--workdir", str(tmp_path / "run")])
    page, _ = page_of(tmp_path / "run")
    assert page.texts["h2"] == ["Results", "Training", "Coherence", "Maps", "Neighbours"]
    assert not page.all("img")
    assert page.texts["td"].count("no labels") == 6
    assert any("test example" in attributes.get("title", "") for attributes in page.all("span"))


def test_a_teacher_alone(run, tmp_path):
    source = json.loads((run / "config.json").read_text())["config"]["data"]["source"]
    cli.main(["teach", *SMALL, "--data.source", source, "--workdir", str(tmp_path / "teacher")])
    page, _ = page_of(tmp_path / "teacher")
    assert page.texts["h2"] == ["Results", "Training", "Map", "Confusion"]
    assert len(page.all("svg")) == 2 + 1


@pytest.fixture(scope="module")
def comparison(run, tmp_path_factory):
    """One student under two names, and runs that cannot be read."""
    folder = tmp_path_factory.mktemp("comparison")
    found = compared_from(run, folder, ("one", "same", "damaged"), ("missing",))
    found["losses"]["../../elsewhere"] = {"runs": {"0": {"status": "done"}}}
    (folder / "comparison.json").write_text(json.dumps(found))
    for part in (folder / "runs" / "damaged" / "0" / "checkpoints").glob("*/state/**/d/*"):
        part.write_bytes(bytes(reversed(part.read_bytes())))
    return folder


def test_students_of_a_comparison_side_by_side(run, comparison):
    before = everything_in(comparison)
    page, _ = page_of(comparison)
    after = everything_in(comparison)
    assert after.pop(comparison / "report.html")
    assert after == before
    assert page.texts["h2"][-3:] == ["Spaces", "Neighbours", "Confusion"]
    assert page.texts["h3"] == ["Maps", "Coherence per anchor", "Rank against rank"]
    said = [drawing["aria-label"] for drawing in page.all("svg")]
    for drawn, whose in (
        ("as {} sees them, 10 classes", ["the teacher", "same", "one"]),
        ("Histogram of {}'s", ["same", "one"]),
        ("Density of {}'s ranks", ["same", "one"]),
        ("Confusion of 10 classes as {} sees", ["the teacher", "same", "one"]),
    ):
        shown = [one for one in said if any(drawn.format(name) in one for name in whose)]
        assert len(shown) == len(whose)
        # The same run under another name looks the same; of "one" a seed diverged, so it stands behind.
        assert shown[-1] == shown[-2].replace(" same", " one")
    # Four examples, and six nearest of each by three models.
    assert len(page.all("img")) == 4 * (1 + 3 * 6)
    missing = [one for one in page.texts["li"] if ", seed 0: " in one]
    for name, why in (
        ("damaged", "is unsound"),
        ("missing", "no run in"),
        ("../../elsewhere", "leads to"),
    ):
        assert [why in one for one in missing if one.startswith(f"{name}, ")] == [True], missing
    assert len(missing) == 3


def test_the_numbers_of_a_student_beside_others_are_those_of_its_features(run, comparison):
    page, _ = page_of(comparison)
    config = config_of(run)[1]
    loaded = load(config)
    whole = represent(
        model_of("distill", config, run, loaded), loaded.examples.test, loaded.normalise, 512
    ).features
    teacher = find_teacher(config, run, loaded, None).features["test"]
    near = [np.linalg.norm(of[:, None] - of, axis=2).astype(np.float64) for of in (whole, teacher)]
    count = len(whole)
    each = [
        stats.spearmanr(*(np.delete(of[anchor], anchor) for of in near)).statistic
        for anchor in range(count)
    ]
    cells = page.texts["td"]
    assert f"{np.median(each):.3f}" in cells
    assert f"{np.quantile(each, 0.1):.3f}" in cells
    assert f"median {np.median(each):.3f}" in page.texts["small"]


def refused(folder, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["report", str(folder)])
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    return complaint


def test_what_cannot_be_reported_is_said_in_a_line(run, tmp_path, capsys, monkeypatch):
    assert "expected the --workdir of an earlier" in refused(tmp_path, capsys)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    for name in ("result.json", "report.html"):
        (unfinished / name).unlink(missing_ok=True)
    before = everything_in(unfinished)
    assert "give its own command again, which goes on to the end" in refused(unfinished, capsys)
    assert everything_in(unfinished) == before
    for damaged in ("", "[1]", '{"teacher'):
        (unfinished / "result.json").write_text(damaged)
        assert "result.json is damaged" in refused(unfinished, capsys)
    told = (unfinished / "config.json").read_text()
    (unfinished / "config.json").write_text(told.replace('"distill"', '"tune"', 1))
    assert "is of `pcjax tune`, which is not drawn" in refused(unfinished, capsys)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert 'pip install "pcjax[report]"' in refused(run, capsys)


def test_a_config_in_words():
    loss = {
        "name": "kd",
        "weight": {"start": 0.0, "end": 1.0, "until": 0.2},
        "head": "linear",
        "bank": 0,
    }
    told = words.asked(
        "distill",
        {
            "data": {"source": "digits", "validation": 0.1, "crop": 4, "flip": True},
            "teacher": {
                "model": {"name": "resnet56"},
                "run": "runs/t",
                "features": None,
                "live": True,
            },
            "student": {"name": "mlp", "widths": [8, 8], "width": None},
            "losses": [loss | {"arguments": {"temperature": 4.0}}],
            "training": dict.fromkeys(("optimiser", "schedule"), "x")
            | {"steps": None, "epochs": 3, "batch": 8, "learning_rate": 0.1, "seed": 2},
        },
    )
    assert told["Losses"] == "0 to 1 times kd (head linear, temperature 4)"
    assert told["Student"] == "mlp (widths 8, 8)"
    assert told["Teacher"] == "of the run in runs/t, sees every augmented image"
    assert "random crops after 4 pixels of padding, random flips" in told["Data"]
    assert told["Training"].startswith("3 epochs of 8 examples")


def test_whatever_was_measured_has_a_row():
    found = {
        "knn_accuracy": 0.9,
        "retrieval": {"recall": {"1": 0.71}, "map": {"value": -0.01, "low": -0.02, "high": 0.0}},
        "other": {"tfds:x/y:1.0.0": {"knn_accuracy": None}},
        "throughput": {"examples_per_second": 12345.6, "device": "cpu"},
    }
    _, rows = words.results({"teacher": found, "student": {"bytes": 1234}})
    assert [row[:2] for row in rows] == [
        ["k-NN accuracy", "90.0 %"],
        ["retrieval: recall: 1", "71.0 %"],
        ["retrieval: map", "-0.010<br><small>-0.020 to 0.000</small>"],
        ["other: tfds:x/y:1.0.0: knn accuracy", "none"],
        ["throughput: examples per second", "12,345.6"],
        ["throughput: device", "cpu"],
        ["bytes", ""],
    ]
