"""A teacher sees the very pixels that its student sees, though it looks only once."""

import functools
import json

import jax
import numpy as np
import pytest
from small import QUICK
from small_vits import vit_tensors, write_folder, write_preprocessor

from pcjax import data
from pcjax.config import Config, Data, Model, Teacher, Training
from pcjax.data import Augmentation, Sampling, training_batches
from pcjax.teachers.live import live_model
from pcjax.teachers.sources import find_encoder
from pcjax.teachers.teacher import Teacher as Outputs
from pcjax.training.build import build_model
from pcjax.training.embedding import jitted_outputs


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
        output = jitted_outputs(*model, batch["image"])
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
        ({"teacher": {"source": "minilm"}, "data": {"flip": True}}, "give teacher.views 4"),
    ],
)
def test_views_that_cannot_be_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        Config(teacher=Teacher(**config["teacher"]), data=Data(**config.get("data", {})))


@pytest.mark.parametrize("side", [8, 12])
def test_a_live_model_of_others_sees_the_images_of_the_batch(side, tmp_path):
    """At its own size its features are those of the views; another size is interpolated."""
    write_folder(tmp_path / "dino", "dinov2", vit_tensors(layer_scale=True))
    write_preprocessor(tmp_path / "dino")
    images = np.random.default_rng(0).integers(0, 255, (40, side, side, 3)).astype(np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    dataset = data.load(f"arrays:{tmp_path}/images.npz")
    encoder = find_encoder(f"dinov2:{tmp_path}/dino")
    augmentation = Augmentation(crop=1, flip=True, views=1)
    model = live_model(encoder, dataset)
    batches = training_batches(
        dataset.train, Sampling(8), augmentation=augmentation, normalise=dataset.normalise
    )
    batch = next(batches)
    batches.close()
    apply = jax.jit(functools.partial(model.function.apply, train=False))
    features = apply(model.parameters, model.statistics, batch["image"])[0].features
    seen = encoder.view(dataset)
    view = data.view_of(seen.train, augmentation, 0, seen.train.shape[0] / side)
    expected = encoder.features(view, seen.normalise, 8)[batch["index"]]
    if side == seen.train.shape[0]:
        np.testing.assert_allclose(features, expected, atol=1e-5)
    else:  # the shift of a pixel is rounded
        assert np.corrcoef(np.ravel(features), np.ravel(expected))[0, 1] > 0.9
