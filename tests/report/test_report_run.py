"""Test the reports of runs, written by the command and read by a parser."""

import html
import json
import shutil

import numpy as np
import pytest
from children import everything_in
from reading import check
from sklearn.datasets import load_digits
from small import QUICK

from pcjax import data
from pcjax.config import Data, Loss, Model, Ramp, Teacher, Training
from pcjax.report import formatting

NASTY = [
    *("<script>alert(1)</script>", "a&b", '"', "$x_1$", "é", "</style>", "\u6570\u5b57"),
    *("a name that is longer than fits", "-->", "]]>"),
]
ALL = [*QUICK, "--data.part", "1.0"]


def checked(folder):
    text = (folder / "report.html").read_text()
    return check(text), text


@pytest.fixture(scope="module")
def run(tmp_path_factory, run_command):
    """Train on digits with class names that could break a page."""
    folder = tmp_path_factory.mktemp("run")
    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)[:719, ..., None]
    classes, path = np.array(NASTY), folder / "named.npz"
    np.savez(path, images=images, labels=digits.target[:719], classes=classes)
    words = ["distill", *ALL, "--data.source", f"arrays:{path}", "--workdir", folder / "run"]
    assert run_command(*words) == 0
    return folder / "run"


@pytest.mark.gate
def test_a_run_as_a_page(run, command):
    before = everything_in(run)
    page, _ = checked(run)
    assert page.texts["h2"] == [*("Results", "Coherence", "Maps", "Neighbours", "Confusion")]
    # Two curves of the student, two of the teacher, a histogram, two densities and three maps.
    # Each can be saved.
    assert len(page.all("svg")) == 2 + 2 + 1 + 2 + 3
    names = [link["download"] for link in page.all("a") if "download" in link]
    assert len(set(names)) == len(page.all("svg"))
    alternatives = {image["alt"].split(", class ")[0][:12] for image in page.all("img")}
    assert alternatives == {"test example"}
    assert len(page.all("img")) == 12 * (1 + 2 * 6)
    assert all(name in page.texts["th"] for name in NASTY)
    status, output, complaint = command("report", run)
    assert status == 0, complaint
    assert f"{run / 'report.html'}: " in output
    assert everything_in(run) == before


@pytest.mark.gate
def test_every_number_of_the_result_is_in_the_table(run):
    page, text = checked(run)
    result = json.loads((run / "result.json").read_text())
    for who in ("teacher", "untrained", "student"):
        metrics = result[who]
        texts = [f"{metrics[size]:,}" for size in ("parameters", "bytes", "flops")]
        texts += [
            f"{100 * metrics[name]:.1f} %" for name in ("knn_accuracy", "linear_probe_accuracy")
        ]
        for degree in metrics["coherence"].values():
            value, low, high = (formatting.number(degree[part]) for part in degree)
            between = " to " if degree["low"] < 0 else "\N{EN DASH}"
            texts.append(f"{value}{low}{between}{high}")
        assert set(texts) <= set(page.texts["td"])
    conclusion, made = page.texts["p"][:2]
    assert f"{100 * result['student']['knn_accuracy']:.1f} % k-NN accuracy" in conclusion
    assert "(cosine)" in conclusion
    assert f"{result['steps']} steps" in made
    assert f"{result['seconds']} seconds" in made
    assert all(f"{name} {version}" in made for name, version in result["versions"].items())
    del result["digest"]
    assert json.dumps(result, indent=1) in html.unescape(text)


@pytest.mark.gate
def test_the_confusion_agrees_with_the_accuracy(run):
    page, _ = checked(run)
    accuracy = json.loads((run / "result.json").read_text())["student"]["knn_accuracy"]
    start = f"student after: {100 * accuracy:.1f} % of"
    assert any(start in text for text in page.texts["caption"])


@pytest.mark.gate
def test_damaged_metrics_are_left_out(run, tmp_path, command):
    copy = shutil.copytree(run, tmp_path / "copy")
    lines = [
        '{"step": 1, "loss": null, "x": 0.5}',
        '{"step": 2, "loss": null, "validation_\\"><script>": 0.5}',
        *('{"step": 3, "loss": NaN}', '{"step": 3, "loss": "<b>"}', '{"st'),
    ]
    (copy / "metrics.jsonl").write_text("\n".join(lines))
    assert command("report", copy)[0] == 0
    page, _ = checked(copy)
    alternatives = [drawing["aria-label"] for drawing in page.all("svg")]
    assert "Curve of the student's loss over the steps: loss never finite." in alternatives
    assert any('validation "><script> over' in text for text in alternatives)


@pytest.mark.gate
def test_vectors_without_labels_and_a_teacher_of_stored_features(tmp_path, command):
    random = np.random.default_rng(0)
    np.save(tmp_path / "plain.npy", random.normal(size=(600, 6)).astype(np.float32))
    source = f"arrays:{tmp_path / 'plain.npy'}"
    loaded = data.load(source, validation=0.2)
    parts = {name: random.normal(size=(len(part), 4)) for name, part in loaded.parts.items()}
    np.savez(tmp_path / "teacher.npz", fingerprint=np.array(loaded.fingerprint), **parts)
    words = ["--data.source", source, "--teacher.features", tmp_path / "teacher.npz"]
    status, _, complaint = command("distill", *ALL, *words, "--workdir", tmp_path / "run")
    assert status == 0, complaint
    page, _ = checked(tmp_path / "run")
    assert page.texts["h2"] == ["Results", "Coherence", "Maps", "Neighbours"]
    assert not page.all("img")
    assert any("test example" in attributes.get("title", "") for attributes in page.all("span"))


@pytest.mark.gate
def test_a_teacher_alone(run, tmp_path, command):
    source = json.loads((run / "config.json").read_text())["config"]["data"]["source"]
    words = ["teach", *ALL, "--data.source", source, "--workdir", tmp_path / "teacher"]
    assert command(*words)[0] == 0
    page, _ = checked(tmp_path / "teacher")
    assert page.texts["h2"] == ["Results", "Map", "Confusion"]
    assert len(page.all("svg")) == 2 + 1
    assert page.texts["p"][0].startswith("The teacher reaches")


@pytest.mark.gate
def test_a_request_that_cannot_be_drawn_is_refused_in_a_line(run, tmp_path, command):
    def refused(folder):
        status, _, complaint = command("report", folder)
        assert status == 2
        assert complaint.count("\n") == 1
        return complaint

    assert "There is no run" in refused(tmp_path / "nowhere")
    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    for name in ("result.json", "report.html"):
        (unfinished / name).unlink()
    before = everything_in(unfinished)
    assert "has no result.json" in refused(unfinished)
    for damaged in ("", "[1]", '{"teacher'):
        (unfinished / "result.json").write_text(damaged)
        assert "result.json " in refused(unfinished)
    (unfinished / "result.json").unlink()
    stored = (unfinished / "config.json").read_text()
    assert everything_in(unfinished) == before
    (unfinished / "config.json").write_text(stored.replace('"distill"', '"tune"', 1))
    assert "`pcjax tune`, which has no report" in refused(unfinished)


def test_a_config_in_words():
    described = formatting.describe_distillation(
        data=Data(source="digits", crop=4, flip=True),
        teacher=Teacher(run="runs/t", live=True),
        student=Model("mlp", {"widths": (8, 8)}),
        losses=(Loss("kd", Ramp(0.0, 1.0, until=0.2), "none", arguments={"temperature": 4.0}),),
        training=Training(epochs=3, batch=8),
    )
    assert described["Losses"] == "0 to 1 times kd (temperature 4)"
    assert described["Student"] == "mlp (widths 8, 8)"
    assert described["Teacher"] == "the run in runs/t, sees every augmented image"
    assert "random crops after 4 pixels of padding, random flips" in described["Data"]
    assert described["Training"].startswith("3 epochs of 8 examples")


def test_every_measured_value_has_a_row():
    degree = {"value": -0.01, "low": -0.02, "high": 0.0}
    teacher = {
        "knn_accuracy": 0.9,
        "retrieval": {"recall_at_1": 0.71},
        "coherence": {"spearman": degree},
        "other": {"tfds:x/y:1.0.0": {"knn_accuracy": 0.5}},
        "unseen": {"knn_accuracy": 0.4},
        "throughput": {"examples_per_second": 1500.4, "batch": 8},
        "corruptions": {"clean": 0.9, "box_blur": {"1": 0.8, "mean": 0.7}},
    }
    _, rows = formatting.result_table(
        {"teacher": teacher, "student": {"parameters": 1234, "bytes": 9}}
    )
    assert [row[:2] for row in rows] == [
        ["parameters", ""],
        ["bytes", ""],
        ["examples a second", "1,500"],
        ["k-NN accuracy", "90.0 %"],
        ["recall@1", "71.0 %"],
        ["coherence (Spearman)", "-0.010<br><small>-0.020 to 0.000</small>"],
        ["unseen classes: k-NN accuracy", "40.0 %"],
        ["tfds:x/y:1.0.0: k-NN accuracy", "50.0 %"],
        ["corrupted images: clean", "90.0 %"],
        ["corrupted images: box blur", "70.0 %"],
    ]
