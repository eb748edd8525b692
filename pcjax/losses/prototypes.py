"""Losses on prototypes, the parts by which a model explains its examples."""

from __future__ import annotations  # short signatures in help()

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float

from pcjax import _checks
from pcjax._checks import RequestError
from pcjax.dissimilarity import squared_euclidean
from pcjax.losses._batch import norms, require_number
from pcjax.losses.feature import flat_batch
from pcjax.losses.registry import Law, RecipeTerm, loss, recipe

ACTIVE = ("teacher", "student")


@loss(needs_head="none", kinds=("maps",), law=Law(same_width=True))
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
    """Compare prototypes, and patches where a prototype is active (Proto2Proto).

    Let a_p be the patch of an image at position p, and p_k the prototypes. m_p = 1 where the patch
    is some prototype's nearest in the image and nearer than the threshold (a squared distance). The
    loss is

        prototype_weight x mean_k |p^student_k - p^teacher_k|
        + patch_weight x sum_p m_p |a^student_p - a^teacher_p|^2 / (2 sum_p m_p + 1),

    summed over all patches of the batch. Keswani et al., "Proto2Proto: Can you recognize the car,
    the way I do?" (arXiv:2204.11830). The weights are the paper's, beside its other terms; the
    threshold is the public code's. That code takes the active patches from the student, although it
    names them the teacher's; active="student" does the same.

    Least 0, for a student equal to the teacher with its prototypes. The student's scale, rotation
    and translation matter.

    Args:
      student: (n, h, w, d) maps of patches.
      teacher: (n, h, w, d) maps of the same examples.
      student_prototypes: (k, d). In a job both are those of the models, as "protopnet" has them.
      teacher_prototypes: (k, d), in the same order; they get no gradient.
      threshold: squared distance below which a prototype is active; positive.
      prototype_weight: of the first term; 0 or positive.
      patch_weight: of the second term; 0 or positive.
      active: the model whose patches decide which are active, "teacher" or "student".
      where: (n,), True for the examples that count.
      axis_name: mapped axis over which the batch is split, see `perception_coherence`.
      reduce_fn: jnp.mean, jnp.sum, another function of the per-example values, or None for these.
        Each value has the whole first term, and n times its part of the second.

    Returns:
      The reduced loss; 0 if everything is masked.

    >>> import jax.numpy as jnp, pcjax
    >>> patches, prototypes = jnp.zeros((1, 2, 2, 3)), jnp.zeros((5, 3))
    >>> options = dict(student_prototypes=prototypes, teacher_prototypes=prototypes)
    >>> # One active patch: 10 x 3 / (2 + 1).
    >>> print(pcjax.losses.proto2proto(patches + 1, patches, **options))
    10.0
    """
    shape, shapes = np.shape(student), (np.shape(student_prototypes), np.shape(teacher_prototypes))
    if len(shape) != 4:
        raise RequestError(
            f"got student {shape}: expected maps (examples, height, width, features)"
        )
    width, count = shape[3], shapes[0][0] if shapes[0] else 0
    if count == 0 or shapes != ((count, width), (count, width)):
        raise RequestError(
            f"got prototypes {shapes[0]} of the student and {shapes[1]} of the teacher for patches "
            f"of {width} features: expected (k, {width}) for both"
        )
    _checks.require_name("active", active, ACTIVE)
    threshold = require_number("threshold", threshold)
    prototype_weight = require_number("prototype_weight", prototype_weight, zero=True)
    patch_weight = require_number("patch_weight", patch_weight, zero=True)
    batch = flat_batch(student, teacher, where=where, axis_name=axis_name, reduce_fn=reduce_fn)
    patches, teacher_patches = (
        x.reshape(shape[0], -1, width) for x in (batch.student, batch.teacher)
    )
    prototypes = jnp.asarray(student_prototypes, batch.student.dtype)
    teacher_prototypes = lax.stop_gradient(jnp.asarray(teacher_prototypes, batch.student.dtype))

    if active == "teacher":
        mask = _active(teacher_patches, teacher_prototypes, threshold)
    else:
        mask = _active(patches, prototypes, threshold)
    mask = mask.astype(patches.dtype)
    distances = jnp.sum(mask * jnp.sum((patches - teacher_patches) ** 2, axis=2), axis=1)
    patch_term = distances * batch.count / (2 * batch.total(jnp.sum(mask, axis=1)) + 1)
    prototype_term = jnp.mean(norms(prototypes - teacher_prototypes))
    return batch.reduced(prototype_weight * prototype_term + patch_weight * patch_term)


def _active(
    patches: Float[Array, "n p d"], prototypes: Float[Array, "k d"], threshold: ArrayLike
) -> Bool[Array, "n p"]:
    """Return the patches that are some prototype's nearest in their image, and near enough."""
    n, positions, features = patches.shape
    flat, prototypes = lax.stop_gradient((patches.reshape(-1, features), prototypes))
    distances = squared_euclidean(flat, prototypes).reshape(n, positions, -1)
    nearest = jax.nn.one_hot(jnp.argmin(distances, axis=1), positions, axis=1, dtype=bool)
    return jnp.any(nearest & (distances < threshold), axis=2)


# The paper's other terms need prototypes that belong to classes.
recipe("proto2proto", RecipeTerm("proto2proto"), RecipeTerm("cross_entropy"))
