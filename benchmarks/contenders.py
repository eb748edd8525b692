"""Build the same loss on every rank operator, as a step that computes loss and gradient once.

The step takes student (n, ds) and teacher (n, dt) features. It computes Euclidean distances without
self-pairs, the teacher's hard ranks, the student's soft ranks relative to the standard deviation of
its row, their mean absolute difference, and the gradient to the student.
"""

# pyright: reportMissingImports=false

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

TEMPERATURE = 0.1


class Built(NamedTuple):
    """A compiled contender on fixed features."""

    step: Callable[[], Any]  # computes loss and gradient once, and waits for them
    temporary_bytes: int | None  # memory besides arguments and results, where it is known


Build = Callable[[np.ndarray, np.ndarray], Built]


def compiled(step: Callable[..., Any], *arguments: Any) -> Built:
    """Compile a step of JAX on its arguments."""
    import jax

    arguments = jax.device_put(arguments)
    run = jax.jit(step).lower(*arguments).compile()
    needs = run.memory_analysis()
    return Built(
        lambda: jax.block_until_ready(run(*arguments)),
        None if needs is None else needs.temp_size_in_bytes,
    )


def _in_jax(loss: Callable[[Any, Any], Any], student: np.ndarray, teacher: np.ndarray) -> Built:
    import jax

    return compiled(jax.value_and_grad(loss), student, teacher)


def _pcjax(student: np.ndarray, teacher: np.ndarray, **given: Any) -> Built:
    import pcjax

    def loss(student: Any, teacher: Any) -> Any:
        return pcjax.losses.perception_coherence(
            student, teacher, temperature=TEMPERATURE, dissimilarity="euclidean", **given
        )

    return _in_jax(loss, student, teacher)


def _rank_operator(rank: Callable[[Any], Any], student: np.ndarray, teacher: np.ndarray) -> Built:
    """Build the loss on an operator that maps rows of unit deviation to ranks 1 ... n - 1."""
    import jax.numpy as jnp

    import pcjax

    n = len(student)

    def others(x: Any) -> Any:
        d = pcjax.dissimilarity.euclidean(x, x)
        # Without its first entry the flattened matrix has rows of n + 1 that end on a self-pair.
        return d.reshape(-1)[1:].reshape(n - 1, n + 1)[:, :-1].reshape(n, n - 1)

    def loss(student: Any, teacher: Any) -> Any:
        target = jnp.argsort(jnp.argsort(others(teacher), axis=1), axis=1) + 1
        d = others(student)
        return jnp.mean(jnp.abs(rank(d / jnp.std(d, axis=1, keepdims=True)) - target)) / (n - 1)

    return _in_jax(loss, student, teacher)


def _rkd_distance(student: np.ndarray, teacher: np.ndarray) -> Built:
    import jax.numpy as jnp
    import optax

    import pcjax

    def loss(student: Any, teacher: Any) -> Any:
        d_student, d_teacher = (pcjax.dissimilarity.euclidean(x, x) for x in (student, teacher))
        pairs = len(student) * (len(student) - 1)
        return jnp.mean(
            optax.huber_loss(
                d_student * pairs / d_student.sum(), d_teacher * pairs / d_teacher.sum()
            )
        )

    return _in_jax(loss, student, teacher)


def _softjax(student: np.ndarray, teacher: np.ndarray, method: str) -> Built:
    import softjax

    rank = functools.partial(
        softjax.rank, axis=1, softness=TEMPERATURE, method=method, descending=False
    )
    return _rank_operator(lambda d: rank(d, standardize=False) + 1, student, teacher)


def _rax(student: np.ndarray, teacher: np.ndarray) -> Built:
    import rax

    return _rank_operator(lambda d: rax.utils.approx_ranks(-d / TEMPERATURE), student, teacher)


def _ott(student: np.ndarray, teacher: np.ndarray) -> Built:
    from ott.tools import soft_sort

    return _rank_operator(
        lambda d: soft_sort.ranks(d, axis=1, epsilon=TEMPERATURE**2) + 1, student, teacher
    )


def _torchsort(student: np.ndarray, teacher: np.ndarray) -> Built:
    import jax
    import torch
    import torchsort

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    s = torch.tensor(student, device=device, requires_grad=True)
    t = torch.tensor(teacher, device=device)
    n = len(student)

    def others(x: Any) -> Any:
        d = torch.cdist(x, x)
        return d.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(n, n - 1)

    def step() -> Any:
        s.grad = None
        target = others(t).argsort(dim=1).argsort(dim=1) + 1
        d = others(s)
        ranks = torchsort.soft_rank(
            d / d.std(dim=1, keepdim=True), regularization_strength=TEMPERATURE
        )
        loss = (ranks - target).abs().mean() / (n - 1)
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.detach(), s.grad

    if device == "cpu":
        return Built(step, None)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return Built(step, torch.cuda.max_memory_allocated() - before)


# name: (builder, the largest n on a CPU, beyond which time or memory would not suffice)
CONTENDERS: dict[str, tuple[Build, int]] = {
    "pcjax laplace": (_pcjax, 32768),
    "pcjax laplace, chunks of 256": (functools.partial(_pcjax, chunk_size=256), 32768),
    "pcjax logistic": (functools.partial(_pcjax, ranking="logistic"), 1024),
    "pcjax permutahedron": (functools.partial(_pcjax, ranking="permutahedron"), 4096),
    "rkd distance": (_rkd_distance, 8192),
    "torchsort": (_torchsort, 4096),
    "softjax softsort": (functools.partial(_softjax, method="softsort"), 1024),
    "softjax neuralsort": (functools.partial(_softjax, method="neuralsort"), 1024),
    "softjax fast_soft_sort": (functools.partial(_softjax, method="fast_soft_sort"), 1024),
    "rax approx_ranks": (_rax, 1024),
    "ott-jax ranks": (_ott, 256),
}
REFERENCE = "pcjax laplace"
