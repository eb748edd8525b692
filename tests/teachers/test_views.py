"""A teacher sees the very pixels that its student sees, though it looks only once."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from small import QUICK

from pcjax import data
from pcjax.config import Config, Model, Teacher, Training
from pcjax.data import Augmentation, Sampling, training_batches
from pcjax.teachers.teacher import Teacher as Outputs
from pcjax.training.build import build_model


@pytest.mark.parametrize("views", [0, 3])
def test_the_features_of_a_batch_are_of_its_images(views):
    dataset = data.load("digits", part=0.1)
    model = build_model(Model("mlp", {"features": 5, "widths": (6,)}), dataset, Training(), 0)
    augmentation = Augmentation(crop=2, flip=True, views=views)
    teacher = Outputs.from_model(model, dataset, batch=64, augmentation=augmentation)
    columns = teacher.targets(dataset).columns
    given = {"normalise": dataset.normalise, "columns": columns}
    batches = training_batches(dataset.train, Sampling(32), augmentation=augmentation, **given)
    for _ in range(2 * batches.steps_per_epoch):
        batch = next(batches)
        output = model.output(jnp.asarray(batch["image"]))
        same = np.allclose(batch["teacher"], output.features, atol=1e-5)
        assert same == (views > 0)  # without views the teacher has seen the plain images
        assert np.allclose(batch["teacher_logits"], output.logits, atol=1e-5) == (views > 0)
    batches.close()


@pytest.mark.gate
def test_a_student_learns_from_views(tmp_path, command):
    words = (*QUICK, "--data.crop", "1", "--teacher.views", "2", "--workdir", tmp_path / "run")
    status, _, complaint = command("distill", *words)
    assert (status, complaint) == (0, "")
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["student"]["coherence"]["spearman"]["value"] > 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"teacher": {"views": 2}}, "needs data.crop or data.flip"),
        ({"teacher": {"views": 2, "live": True}}, "teacher.views and teacher.live exclude"),
        ({"teacher": {"views": 2, "features": "x.npy"}}, "teacher.features exclude"),
        ({"teacher": {"views": -1}}, "teacher.views"),
    ],
)
def test_views_that_cannot_be_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        Config(teacher=Teacher(**config["teacher"]))
