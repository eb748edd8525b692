"""Whole runs of networks of prototypes, by the command."""

import json

import numpy as np
import pytest
from children import checkpoint_of
from small import QUICK

import pcjax
from pcjax import data
from pcjax.training.metrics_log import read_metrics

WORDS = ["distill", *QUICK, "--losses", "proto2proto"]
STUDENT, TEACHER = ["--student.name", "protopnet"], ["--teacher.model.name", "protopnet"]
LIVE = ["--teacher.live"]
POINTS = "student/backbone.pool.prototypes.points"


@pytest.mark.gate
def test_a_student_comes_nearer_to_its_teachers_prototypes(command, tmp_path):
    words = [*WORDS, *STUDENT, *TEACHER, *LIVE, "--training.learning-rate", "1e-2"]
    status, _, complaint = command(*words, "--workdir", tmp_path / "run")
    assert status == 0, complaint
    records = [record for record in read_metrics(tmp_path / "run") if "loss" in record]
    for record in records:
        parts = [record[name] for name in ("proto2proto", "cross_entropy")]
        assert record["loss"] == pytest.approx(sum(parts), rel=1e-5)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 < result["student"]["knn_accuracy"] <= 1
    teacher = checkpoint_of(tmp_path / "run" / "teacher", 4)[0][POINTS]
    distances = []
    for step in (4, 8):
        points = checkpoint_of(tmp_path / "run", step)[0][POINTS]
        assert points.shape == teacher.shape == (20, 64)
        distances.append(np.linalg.norm(points - teacher, axis=1).mean())
    assert distances[1] < 0.98 * distances[0]

    assert command("export", tmp_path / "run")[0] == 0
    test = data.load("digits", part=0.4, validation=0.2).test
    features = pcjax.load(tmp_path / "run").features(test.take(np.arange(len(test))))
    assert features.shape == (len(test), 4)
    assert np.isfinite(features).all()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*STUDENT, *TEACHER], "compares maps, which only a live teacher gives: set teacher.live"),
        (
            [*TEACHER, *LIVE],
            "the student has none: give a model that has, as --student.name protopnet",
        ),
        ([*STUDENT, *LIVE], "and the teacher has none: give a model that has, as --teacher.model"),
        (
            [*STUDENT, *TEACHER, *LIVE, "--student.prototypes", "10"],
            "prototypes of one shape, but the student's are (10, 64) and the teacher's (20, 64)",
        ),
        (
            [*STUDENT, *TEACHER, *LIVE, "--teacher.model.patch-features", "32"],
            "(20, 32): give both the same number (prototypes) and width (patch_features)",
        ),
        (
            [*STUDENT, *TEACHER, *LIVE, "--student.widths", "8", "8"],
            "(4, 4, 64) and the teacher's (8, 8, 64): choose backbones that reduce images as often",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(words, message, command, tmp_path):
    status, output, complaint = command(*WORDS, *words, "--workdir", tmp_path / "run")
    assert (status, output, complaint.count("\n")) == (2, "", 1), complaint
    assert message in complaint
    assert not (tmp_path / "run").exists()


@pytest.mark.bad_input
@pytest.mark.parametrize("maps", [("stage1", "patches"), ("patches", "prototypes")])
def test_prototypes_are_compared_in_their_own_patches(maps, command, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from pcjax.config import Config, Loss, Model, Teacher\n"
        "model = Model('protopnet', {'widths': (8,)})\n"
        f"losses = (Loss('proto2proto', maps={maps}),)\n"
        "config = Config(student=model, teacher=Teacher(model, live=True), losses=losses)\n"
    )
    words = (tmp_path / "mine.py", "--workdir", tmp_path / "run")
    status, _, complaint = command("distill", *words)
    assert (status, complaint.count("\n")) == (2, 1)
    assert "unknown map of the" in complaint
    assert "expected one of 'patches'" in complaint
