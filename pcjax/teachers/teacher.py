"""The teacher as the student's training and the evaluation see it."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pcjax import _io
from pcjax.data import Augmentation, Dataset, Examples, view_of
from pcjax.display import Display
from pcjax.models import Output
from pcjax.teachers.cache import cached_features
from pcjax.teachers.encoder import Encoder
from pcjax.teachers.live import live_model
from pcjax.training.embedding import (
    Embeddings,
    FrozenModel,
    embed,
    embed_all,
    features_of_all,
    output_shapes,
)
from pcjax.training.objective import TeacherTargets


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A teacher's outputs for every part of a data set, and its model where there is one.

    features: part ("train", "validation", "test", perhaps "unseen") -> (n, d) array.
    logits: (n, classes) class scores of the training examples, or None.
    digest: hash of the weights, or of the features where there is no model.
    model: None where the features come from a file.
    live: whether the student's training shows the model every augmented image.
    encoder: the model of others that computed the features, if it was one.
    seen: the examples as that model reads them; None: as the student reads them.
    views: its outputs for the views of the training examples, where the training shows views.
    """

    features: Mapping[str, np.ndarray]
    logits: np.ndarray | None
    digest: str
    model: FrozenModel | None = None
    live: bool = False
    encoder: Encoder | None = None
    seen: Dataset | None = None
    views: tuple[Embeddings, ...] = ()

    @classmethod
    def from_model(
        cls,
        model: FrozenModel,
        dataset: Dataset,
        *,
        batch: int,
        live: bool = False,
        augmentation: Augmentation | None = None,
    ) -> "Teacher":
        """Compute a model's outputs for all examples, and for their views."""
        outputs = embed_all(model, dataset, batch)
        features = {part: output.features for part, output in outputs.items()}
        views = tuple(
            embed(model, view, dataset.normalise, batch)
            for view in views_of(dataset.train, augmentation)
        )
        return cls(features, outputs["train"].logits, model.digest, model, live, views=views)

    @classmethod
    def from_features(cls, features: Mapping[str, np.ndarray]) -> "Teacher":
        """Wrap features that were computed elsewhere."""
        return cls(features, None, _io.digest_arrays(dict(features)))

    @classmethod
    def from_encoder(
        cls,
        encoder: Encoder,
        dataset: Dataset,
        *,
        batch: int,
        display: Display,
        live: bool = False,
        augmentation: Augmentation | None = None,
    ) -> "Teacher":
        """Compute the features of all examples and views, or take them from the cache."""
        seen = encoder.view(dataset)
        cached = _cached(encoder, seen, batch, display)
        features = {part: cached(examples) for part, examples in seen.parts.items()}
        digest = _io.digest([encoder.digest, dict(encoder.settings())])
        scale = seen.train.shape[0] / dataset.train.shape[0] if augmentation is not None else 1.0
        views = tuple(
            Embeddings(cached(view), None) for view in views_of(seen.train, augmentation, scale)
        )
        return cls(
            features, None, digest, encoder.model, live, encoder=encoder, seen=seen, views=views
        )

    @property
    def is_from_a_file(self) -> bool:
        """Return whether the features came without a model, so that their order may be wrong."""
        return self.model is None and self.encoder is None

    def view(self, dataset: Dataset) -> Dataset:
        """Return a data set as the model reads it."""
        return dataset if self.encoder is None else self.encoder.view(dataset)

    def features_of(self, dataset: Dataset, batch: int) -> dict[str, np.ndarray]:
        """Compute the features of another data set, or take them from the cache.

        There are none where the teacher came without a model.
        """
        if self.encoder is not None:
            seen = self.encoder.view(dataset)
            cached = _cached(self.encoder, seen, batch, Display(quiet=True))
            return {part: cached(examples) for part, examples in seen.parts.items()}
        return {} if self.model is None else features_of_all(self.model, dataset, batch)

    def targets(self, dataset: Dataset) -> TeacherTargets:
        """Return the targets that a train step compares the student with.

        A live teacher is a function of the batch's images. Any other teacher adds its outputs for
        the plain images, or for their views, as columns of the batch.
        """
        model, features = self.model, self.features["train"]
        classifier = {} if model is None else classifier_of(model)
        if self.live and model is not None:
            if self.encoder is not None:
                model = live_model(self.encoder, dataset)
            return TeacherTargets(
                digest=self.digest,
                arrays=(model.parameters, model.statistics),
                function=model.function,
                shapes=output_shapes(model, dataset),
                classifier=classifier,
                features=features,
            )
        columns: dict[str, Any] = {"teacher": features}
        if self.logits is not None:
            columns["teacher_logits"] = self.logits
        if self.views:
            columns["teacher"] = tuple(view.features for view in self.views)
            if self.logits is not None:
                columns["teacher_logits"] = tuple(view.logits for view in self.views)
        scores = None if self.logits is None else _row_shape(self.logits)
        return TeacherTargets(
            digest=self.digest,
            shapes=Output(_row_shape(features), scores, {}),
            classifier=classifier,
            features=features,
            columns=columns,
        )


def _cached(
    encoder: Encoder, seen: Dataset, batch: int, display: Display
) -> Callable[[Examples], np.ndarray]:
    """Return a function that computes the features of examples, or takes them from the cache."""
    manifest = {"name": encoder.name, "teacher": encoder.digest, **encoder.settings()}

    def compute(examples: Examples) -> np.ndarray:
        return encoder.features(examples, seen.normalise, batch)

    def cached(examples: Examples) -> np.ndarray:
        return cached_features(compute, encoder.width, examples, manifest, display)

    return cached


def views_of(
    examples: Examples, augmentation: Augmentation | None, scale: float = 1.0
) -> Iterator[Examples]:
    """Yield the views of training examples; none without an augmentation that has views."""
    if augmentation is not None:
        for view in range(augmentation.views):
            yield view_of(examples, augmentation, view, scale)


def classifier_of(model: FrozenModel) -> dict[str, Any]:
    """Return the kernel and bias of a model's last layer, where it has one."""
    names = {name: f"classify/{name}" for name in ("kernel", "bias")}
    return {name: model.parameters[p] for name, p in names.items() if p in model.parameters}


def _row_shape(rows: np.ndarray) -> Any:
    return jax.ShapeDtypeStruct((1, *rows.shape[1:]), jnp.float32)
