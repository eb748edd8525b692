"""Losses on prototypes: the parts that a model explains its examples by are to be the teacher's."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float

from pcjax import _checks
from pcjax.dissimilarity import squared_euclidean
from pcjax.losses._batch import norms, require_number
from pcjax.losses.feature import _flat

ACTIVE = ("teacher", "student")


def proto2proto(
    student: ArrayLike,
    teacher: ArrayLike,
    *,
    student_prototypes: ArrayLike,
    teacher_prototypes: ArrayLike,
    threshold: ArrayLike = 100.0,
    prototype_weight: ArrayLike = 10.0,
    patch_weight: ArrayLike = 10.0,
    active: str = "teacher",
    where: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    reduce_fn: Callable[..., Array] | None = jnp.mean,
) -> Float[Array, "..."]:
    r"""Distillation between networks of prototypes: their prototypes, and their patches where a prototype is active.

    With a_p the patch of an image at position p, p_k the prototypes, and m_p = 1 where p is, for any prototype, the
    image's nearest patch to it and nearer than the threshold (a squared distance), the loss is

        prototype_weight x mean_k |p^student_k - p^teacher_k|
        + patch_weight x sum_p m_p |a^student_p - a^teacher_p|^2 / (2 sum_p m_p + 1),

    summed over all patches of the batch. Keswani et al., "Proto2Proto: Can you recognize the car, the way I do?"
    (arXiv:2204.11830): the weights are the paper's, beside its other terms, and the threshold is the public code's.
    That code finds the active patches in the student, though it names them the teacher's; so does active="student".

    Least 0, for a student equal to the teacher with its prototypes. The student's scale, rotation and translation
    matter.

    Args:
      student: (n, h, w, d) maps of patches.
      teacher: (n, h, w, d) those of the same examples.
      student_prototypes: (k, d), `pcjax.models.regressors.Prototypes`.
      teacher_prototypes: (k, d), in the same order; they get no gradient.
      threshold: squared distance below which a prototype is active; positive.
      prototype_weight: of the first term; 0 or positive.
      patch_weight: of the second term; 0 or positive.
      active: whose patches are looked at for active ones, "teacher" or "student".
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for those, shape (n,). Each has
        the whole first term and its part, times n, of the second.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import jax.numpy as jnp, pcjax
    >>> patches, prototypes = jnp.zeros((1, 2, 2, 3)), jnp.zeros((5, 3))
    >>> given = dict(student_prototypes=prototypes, teacher_prototypes=prototypes)
    >>> print(pcjax.losses.proto2proto(patches + 1, patches, **given))  # the one active patch, 10 x 3 / (2 + 1)
    10.0
    """
    shape, shapes = np.shape(student), (np.shape(student_prototypes), np.shape(teacher_prototypes))
    _checks.require(
        len(shape) == 4, f"got student {shape}: expected maps (examples, height, width, features)"
    )
    got = f"got prototypes {shapes[0]} of the student and {shapes[1]} of the teacher for patches of {shape[3]} features"
    fits = (
        shapes[0] == shapes[1]
        and len(shapes[0]) == 2
        and shapes[0][0] > 0
        and shapes[0][1] == shape[3]
    )
    _checks.require(fits, f"{got}: expected (k, {shape[3]}) for both")
    _checks.require_name("active", active, ACTIVE)
    threshold = require_number("threshold", threshold)
    prototype_weight = require_number("prototype_weight", prototype_weight, zero=True)
    patch_weight = require_number("patch_weight", patch_weight, zero=True)
    batch = _flat(student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn)
    own, theirs = (x.reshape(shape[0], -1, shape[3]) for x in (batch.student, batch.teacher))
    prototypes = jnp.asarray(student_prototypes, batch.student.dtype)
    teacher_prototypes = lax.stop_gradient(jnp.asarray(teacher_prototypes, batch.student.dtype))

    looked_at = (theirs, teacher_prototypes) if active == "teacher" else (own, prototypes)
    mask = _active(*looked_at, threshold).astype(own.dtype)
    distances = jnp.sum(mask * jnp.sum((own - theirs) ** 2, axis=2), axis=1)
    patches = distances * batch.count / (2 * batch.total(jnp.sum(mask, axis=1)) + 1)
    difference = jnp.mean(norms(prototypes - teacher_prototypes))
    return batch.reduced(prototype_weight * difference + patch_weight * patches)


def _active(
    patches: Float[Array, "n p d"], prototypes: Float[Array, "k d"], threshold: ArrayLike
) -> Bool[Array, "n p"]:
    """Which patches are some prototype's nearest in their image, and nearer than the threshold."""
    n, positions, features = patches.shape
    flat, prototypes = lax.stop_gradient((patches.reshape(-1, features), prototypes))
    distances = squared_euclidean(flat, prototypes).reshape(n, positions, -1)
    nearest = jax.nn.one_hot(jnp.argmin(distances, axis=1), positions, axis=1, dtype=bool)
    return jnp.any(nearest & (distances < threshold), axis=2)
