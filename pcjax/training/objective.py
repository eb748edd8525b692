"""The weighted sum of losses that a config asks for."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from pcjax._checks import RequestError
from pcjax.config import Loss, Ramp
from pcjax.models import Output, heads
from pcjax.terms import TERMS
from pcjax.training.functional import Arrays, Functional, functional


class Objective(NamedTuple):
    """The losses, and the learnt heads that some of them look through, by the losses' places."""

    losses: tuple[Loss, ...]
    heads: dict[str, Functional]

    def names(self) -> list[str]:
        """One for every loss, and none twice."""
        names = [loss.name for loss in self.losses]
        return [name if names.count(name) == 1 else f"{name}_{place}" for place, name in enumerate(names)]

    def __call__(
        self,
        student: Output,
        teacher: Output | None,
        batch: Mapping[str, Array],
        head_parameters: Mapping[str, Arrays],
        banks: Mapping[str, tuple[Array, Array]],
        progress: Float[Array, ""],
        axis_name: str | None,
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The sum, and every loss by its name; `progress` is the share of the training that is done."""
        total, values = jnp.zeros(()), {}
        for place, (name, loss) in enumerate(zip(self.names(), self.losses, strict=True)):
            term, key = TERMS[loss.name], str(place)
            given = {what: at(value, progress) for what, value in loss.arguments.items()}
            given |= {"where": batch["mask"], "axis_name": axis_name}
            if term.labelled:
                given["labels"] = batch["label"]
            if key in banks:
                given["references"] = banks[key]
            if term.inputs == "labels":
                value = term.function(student.logits, **given)
            elif term.inputs == "logits":
                value = term.function(student.logits, _of(teacher).logits, **given)
            else:
                features = self.seen(key, student.features, head_parameters)
                value = term.function(features, _of(teacher).features, **given)
            values[name] = value
            total = total + at(loss.weight, progress) * value
        return total, values

    def seen(self, key: str, features: Array, head_parameters: Mapping[str, Arrays]) -> Array:
        """The student's features as the loss at that place sees them: through its head, if it has one."""
        if key not in self.heads:
            return features
        return self.heads[key].apply(head_parameters[key], {}, features, train=True)[0]


def objective(
    losses: tuple[Loss, ...], student: Output, teacher: Output | None, seed: int
) -> tuple[Objective, dict[str, Arrays]]:
    """The objective for models of these outputs (only their shapes matter), and the first parameters of its heads."""
    functions, parameters = {}, {}
    for place, loss in enumerate(losses):
        term = TERMS[loss.name]
        for who, output in (("student", student), ("teacher", teacher)):
            if term.inputs == "logits" and (output is None or output.logits is None):
                raise RequestError(f"the loss {loss.name} compares class scores, and the {who} gives none")
        if loss.head != "none":
            kind = {"linear": heads.Linear, "mlp": heads.MLP}[loss.head]
            sizes = student.features.shape[1], _of(teacher).features.shape[1]
            build = _builder(kind, *sizes, seed=seed * 1000 + place)
            functions[str(place)], parameters[str(place)], _ = functional(build)
    return Objective(losses, functions), parameters


def _builder(kind: Any, inputs: int, outputs: int, seed: int) -> Any:
    return lambda: kind(inputs, outputs, rngs=nnx.Rngs(seed))


def _of(teacher: Output | None) -> Output:
    if teacher is None:
        raise RequestError("this loss needs a teacher")
    return teacher


def at(number: Any, progress: Float[Array, ""]) -> Any:
    """A number as it is, a ramp as it stands when that share of the training is done."""
    if not isinstance(number, Ramp):
        return number
    way = jnp.clip(progress / number.until, 0, 1)
    if number.shape == "geometric":
        return number.start * jnp.exp(way * jnp.log(number.end / number.start))
    if number.shape == "cosine":
        way = (1 - jnp.cos(jnp.pi * way)) / 2
    return number.start + (number.end - number.start) * way


def enqueue(bank: tuple[Array, Array], student: Array, teacher: Array, axis_name: str | None) -> tuple[Array, Array]:
    """The bank with a batch's features, of all devices, put in front, and as many of the oldest gone."""
    new = jax.lax.stop_gradient((student, teacher))
    if axis_name is not None:
        new = jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, axis=0, tiled=True), new)
    return jax.tree.map(lambda fresh, old: jnp.concatenate([fresh, old])[: old.shape[0]], new, bank)
