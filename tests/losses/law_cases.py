"""How the laws call every loss, and who pays the least of it."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pcjax import losses
from pcjax.losses.registry import LOSSES

WIDTH = 4


@dataclasses.dataclass(frozen=True)
class Case:
    """How to call a loss, and what is stated of it."""

    function: Callable[..., Any]
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rows: Mapping[str, Callable[[np.random.Generator, int], Any]] = dataclasses.field(
        default_factory=dict
    )
    same_width: bool = False  # whether student and teacher must have as many features
    best: Callable[..., Any] | None = None  # who pays the least; None: one equal to the teacher
    per_example: bool = True  # whether it is a mean over examples
    taught: bool = True  # whether it uses the teacher at all

    @property
    def documented(self):
        return inspect.unwrap(self.function)


KERNEL = np.random.default_rng(7).normal(size=(WIDTH, 5)).astype(np.float32)
PROTOTYPES = np.random.default_rng(8).normal(size=(3, 2))
LABELS = {"labels": lambda rng, n: rng.integers(0, WIDTH, n)}
DRAWN = {"indices": lambda rng, n: rng.permutation(40)[:n]}


def rows_of(*names):
    return {name: lambda rng, n: rng.normal(size=(n, WIDTH)) for name in names}


def queue_of(*widths):
    """Nine points in a queue of twelve."""
    points = tuple(
        np.random.default_rng(9).normal(size=(9, width)).astype(np.float32) for width in widths
    )
    empty = losses.empty_queue(12, widths)
    queue = losses.enqueue(empty, points)
    return {"queue": queue if len(widths) > 1 else queue._replace(points=queue.points[0])}


def crd_memory():
    """Fix the normalisers: at the first batch they move with the student, without gradient."""
    memory = losses.crd_memory(jax.random.key(0), 40, WIDTH, labels=np.arange(40) % 7)
    return memory._replace(started=jnp.ones((), bool), log_normalisers=jnp.array([5.0, 6.0]))


def on_maps(loss):
    """Rows of four numbers as maps of two positions and two channels."""

    @functools.wraps(loss)
    def mapped(student, teacher, **given):
        return loss(*(x.reshape(-1, 1, 2, 2) for x in (student, teacher)), **given)

    return mapped


def untaught(loss):
    """Call a loss without a teacher as the others are."""
    return functools.wraps(loss)(lambda student, teacher, **given: loss(student, **given))


def equal_with(**arguments):
    """Return a student equal to the teacher, with other arguments."""
    return lambda student, teacher, rows: (student, teacher, rows | arguments)


def beyond_doubt(student, teacher, rows):
    return 1e3 * np.eye(WIDTH)[rows["labels"]], teacher, rows


def all_alike(student, teacher, rows):
    return student, student, dict.fromkeys(rows, student) | {"temperature": 1e-6}


def well_remembered(student, teacher, rows):
    """Remember the batch in one direction, and the other class in the opposite one."""
    one = np.ones((len(student), WIDTH))
    memory = losses.crd_memory(jax.random.key(0), 40, WIDTH, labels=np.arange(40) // 20)
    side = np.where(np.arange(40)[:, None] < 20, 0.5, -0.5)
    points = jnp.asarray(side * np.ones((40, WIDTH)), memory.student.dtype)
    memory = memory._replace(student=points, teacher=points, started=jnp.ones((), bool))
    memory = memory._replace(log_normalisers=jnp.zeros_like(memory.log_normalisers))
    return one, one, {"indices": np.arange(len(student)), "memory": memory, "temperature": 0.03}


def standardised(student, teacher, rows):
    centred = teacher - teacher.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5), teacher, rows


def collapsed(student, teacher, rows):
    return np.ones_like(student), teacher, rows


def case_of(name, **more):
    """Build the case of a registered loss from its law; what needs arrays is given here."""
    spec = LOSSES[name]
    law = spec.law
    function = on_maps(spec.function) if spec.kinds == ("maps",) else spec.function
    more["given"] = {**law.arguments, **more.get("given", {})}
    assert law.least_at_teacher == ("best" not in more), name
    return Case(
        **(
            {"function": function, "same_width": law.same_width, "per_example": law.per_example}
            | more
        )
    )


NEIGHBOURS = rows_of("student_neighbours", "teacher_neighbours", "student_mixtures")
PROTOTYPE_PAIR = {"student_prototypes": PROTOTYPES, "teacher_prototypes": PROTOTYPES}
CRD = {"memory": crd_memory(), "key": jax.random.key(1)}
# Facts that no `Law` holds: arrays, and the best student if it is not equal to the teacher.
SPECIAL = {
    "perception_coherence": {"given": {"temperature": 0.2, "teacher_temperature": 0.2}},
    "darkrank_hard": {"best": equal_with(alpha=1e6)},
    "rank_list": {"best": equal_with(exponent=1e6, temperature=1e-6)},
    "spearman": {"best": equal_with(temperature=1e-7)},
    "cross_entropy": {
        "function": untaught(losses.cross_entropy),
        "rows": LABELS,
        "best": beyond_doubt,
        "taught": False,
    },
    "dkd": {"rows": LABELS},
    "shared_classifier": {"given": {"kernel": KERNEL}},
    "info_nce": {"best": equal_with(temperature=1e-6)},
    "relational_representation": {
        "given": queue_of(WIDTH),
        "best": equal_with(temperature=1e-6, teacher_temperature=1e-6),
    },
    "similarity_kl": {"given": queue_of(WIDTH)},
    "bingo": {"given": queue_of(WIDTH), "rows": NEIGHBOURS, "best": all_alike},
    "crd": {"given": CRD, "rows": DRAWN, "best": well_remembered},
    "orthogonal_projection": {"best": standardised},
    "locality_preserving": {"best": collapsed},
    "proto2proto": {"given": PROTOTYPE_PAIR},
}
CASES = {name: case_of(name, **SPECIAL.get(name, {})) for name in LOSSES}
CASES["info_nce with a queue"] = case_of(
    "info_nce", given=queue_of(WIDTH), best=equal_with(temperature=1e-6)
)
CASES["rank_list in the teacher's frame"] = case_of(
    "rank_list",
    given={"frame": "teacher"},
    same_width=True,
    best=equal_with(exponent=1e6, temperature=1e-6),
)
