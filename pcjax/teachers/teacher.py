"""The teacher as the student's training and the evaluation see it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pcjax import _io
from pcjax.data import Dataset, Examples
from pcjax.display import Display
from pcjax.models import Output
from pcjax.teachers.cache import cached_features
from pcjax.teachers.encoder import Encoder
from pcjax.training.embedding import FrozenModel, embed_all, output_shapes
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
    """

    features: Mapping[str, np.ndarray]
    logits: np.ndarray | None
    digest: str
    model: FrozenModel | None = None
    live: bool = False
    encoder: Encoder | None = None
    seen: Dataset | None = None

    @classmethod
    def from_model(
        cls, model: FrozenModel, dataset: Dataset, *, batch: int, live: bool = False
    ) -> "Teacher":
        """Compute a model's outputs for all examples."""
        outputs = embed_all(model, dataset, batch)
        features = {part: output.features for part, output in outputs.items()}
        return cls(features, outputs["train"].logits, model.digest, model, live)

    @classmethod
    def from_features(cls, features: Mapping[str, np.ndarray]) -> "Teacher":
        """Wrap features that were computed elsewhere."""
        return cls(features, None, _io.digest_arrays(dict(features)))

    @classmethod
    def from_encoder(
        cls, encoder: Encoder, dataset: Dataset, *, batch: int, display: Display
    ) -> "Teacher":
        """Compute the features of all examples, or take them from the cache."""
        seen = encoder.view(dataset)
        manifest = {"name": encoder.name, "teacher": encoder.digest, **encoder.settings()}

        def compute(examples: Examples) -> np.ndarray:
            return encoder.features(examples, seen.normalise, batch)

        features = {}
        for part, examples in seen.parts.items():
            own = manifest | {"examples": examples.fingerprint}
            features[part] = cached_features(compute, encoder.width, examples, own, display)
        digest = _io.digest([encoder.digest, dict(encoder.settings())])
        return cls(features, None, digest, encoder.model, encoder=encoder, seen=seen)

    def view(self, dataset: Dataset) -> Dataset:
        """Return a data set as the model reads it."""
        return dataset if self.encoder is None else self.encoder.view(dataset)

    def targets(self, dataset: Dataset) -> TeacherTargets:
        """Return the targets that a train step compares the student with.

        A live teacher is a function of the batch's images. Another one adds its outputs for the
        plain images as columns of the batch.
        """
        model, features = self.model, self.features["train"]
        classifier = {} if model is None else classifier_of(model)
        if self.live and model is not None:
            return TeacherTargets(
                digest=self.digest,
                arrays=(model.parameters, model.statistics),
                function=model.function,
                shapes=output_shapes(model, dataset),
                classifier=classifier,
                features=features,
            )
        columns = {"teacher": features}
        if self.logits is not None:
            columns["teacher_logits"] = self.logits
        scores = None if self.logits is None else _row_shape(self.logits)
        return TeacherTargets(
            digest=self.digest,
            shapes=Output(_row_shape(features), scores, {}),
            classifier=classifier,
            features=features,
            columns=columns,
        )


def classifier_of(model: FrozenModel) -> dict[str, Any]:
    """Return the kernel and bias of a model's last layer, where it has one."""
    names = {name: f"classify/{name}" for name in ("kernel", "bias")}
    return {name: model.parameters[p] for name, p in names.items() if p in model.parameters}


def _row_shape(rows: np.ndarray) -> Any:
    return jax.ShapeDtypeStruct((1, *rows.shape[1:]), jnp.float32)
