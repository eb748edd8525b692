"""The plan of a training agrees with what the training then has."""

import jax
import numpy as np
import pytest

from pcjax.cli import main
from pcjax.config import Config, Loss, Model, Training
from pcjax.display import Display
from pcjax.jobs.common import build_student, load_data, student_lesson, student_shapes
from pcjax.teachers import Teacher
from pcjax.training.plan import count_traffic, plan_training, size_of
from pcjax.training.prepare import prepare

WIDTH, BATCH, DEVICES = 24, 64, 8


@pytest.fixture(scope="module")
def dataset():
    return load_data(Config())


def lesson_of(config, dataset, model):
    features = {
        part: np.zeros((len(examples), WIDTH), np.float32)
        for part, examples in dataset.parts.items()
    }
    return student_lesson(config, dataset, model, Teacher.from_features(features).targets(dataset))


def planned(config, dataset, devices=DEVICES):
    lesson = lesson_of(config, dataset, student_shapes(config, dataset))
    return plan_training(lesson, dataset, devices)


def test_the_bytes_are_those_of_the_real_arrays(dataset):
    losses = (Loss("perception_coherence", head="linear", bank=100),)
    config = Config(losses=losses, training=Training(batch=BATCH))
    plan = planned(config, dataset)
    lesson = lesson_of(config, dataset, build_student(config, dataset, Display(quiet=True)))
    _, state, _ = prepare(lesson, dataset)
    assert plan.replicated == {
        "student and heads": size_of((state.student, state.heads)),
        "gradients": size_of((state.student, state.heads)),
        "optimiser": size_of(state.optimiser),
        "statistics and memories": size_of(
            (state.statistics, state.head_statistics, state.memories)
        ),
        "live teacher": 0,
    }
    share = BATCH // DEVICES
    expected = {"image": 64 * 4, "label": 4, "index": 4, "mask": 1, "teacher": WIDTH * 4}
    assert plan.split == {name: share * size for name, size in expected.items()}


def test_what_is_gathered_and_reduced_is_counted_by_hand(dataset):
    student = Model("mlp", {"features": 5, "widths": (7,)})
    config = Config(student=student, training=Training(batch=BATCH))
    plan = planned(config, dataset)
    # The student's and the teacher's features, and a mask.
    assert plan.gathered == BATCH * (4 * (5 + WIDTH) + 1)
    assert plan.reduced > plan.replicated["gradients"]
    assert planned(config, dataset, 1).flops > 2 * plan.flops
    assert planned(config, dataset, 1).kept > 2 * plan.kept
    assert plan.total > sum(plan.replicated.values())


def test_products_are_counted_by_hand():
    x, y = np.zeros((3, 4), np.float32), np.zeros((4, 5), np.float32)

    def twice(x, y):
        return jax.lax.scan(lambda carry, _: (carry + x @ y, None), x @ y, length=2)[0]

    assert count_traffic(jax.make_jaxpr(twice)(x, y).jaxpr)["flops"] == 3 * 2 * 3 * 4 * 5
    images, kernel = np.zeros((2, 8, 8, 3), np.float32), np.zeros((3, 3, 3, 6), np.float32)

    def convolved(images, kernel):
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    flops = count_traffic(jax.make_jaxpr(convolved)(images, kernel).jaxpr)["flops"]
    assert flops == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 3)


def test_it_prints_both_trainings_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["distill", "--dry-run", "--devices", "4", "--device", "1GB"]
    assert main([*words, "--workdir", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    assert "teacher: 256 examples a step, 64 on each of 4 devices" in output
    assert "student: 256 examples a step, 64 on each of 4 devices" in output
    assert output.count("it fits a device of 1 GB") == 2
    assert main([*words[:-1], "0.0001GB"]) == 0
    assert "it does not fit a device of 100 kB" in capsys.readouterr().out
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["distill", "--devices", "7"], "cannot be split evenly over 7 devices"),
        (["distill", "--device", "v9"], "unknown device 'v9'"),
        (["teach"], "--dry-run is for `pcjax distill`"),
        (["distill", "--data.source", "tfds:imagenet2012"], "give --data.image-size"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(words, complaint, capsys):
    assert main([*words, "--dry-run"]) == 2
    errors = capsys.readouterr().err
    assert complaint in errors
    assert errors.count("\n") == 1


@pytest.mark.gate
def test_a_pod_is_planned_without_its_data(capsys):
    assert main(["distill", "configs/imagenet_pod.py", "--dry-run", "--devices", "256"]) == 0
    output = capsys.readouterr().out
    assert "teacher: 2048 examples a step, 8 on each of 256 devices; 25,557,032 parame" in output
    assert "live teacher" in output
    # 4,096 times 512 and 2,048 features, and a mask.
    assert "it receives 41.9 MB of features" in output
