"""The registry states the facts about every loss once; configs and recipes derive from it."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcjax import losses
from pcjax.losses.registry import (
    LOSSES,
    PROVIDED,
    RECIPES,
    MemoryInit,
    init_memory,
    needs_labels,
    step_key,
)

INIT = MemoryInit(6, (3, 4), jax.random.key(0), 10, np.arange(10) % 3)


@pytest.mark.parametrize("name", LOSSES)
def test_the_facts_fit_the_function(name):
    spec = LOSSES[name]
    assert spec.function is getattr(losses, name)
    assert {"where", "axis_name", "reduce_fn"} <= set(spec.parameters)
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    others = [p for n, p in spec.parameters.items() if n not in ("student", "teacher")]
    assert all(parameter.kind is keyword_only for parameter in others)
    # A train step provides every argument without a default, so that a name alone is a config.
    assert not spec.required
    if spec.memory is not None:
        assert spec.memory.argument in spec.parameters
        assert spec.memory.argument in PROVIDED


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_use_arguments_that_their_losses_take(name):
    for term in RECIPES[name]:
        spec = LOSSES[term.loss]
        assert set(term.arguments) <= set(spec.arguments)
        assert spec.head in (None, term.head)
        assert not term.bank or (spec.memory is not None and spec.memory.sized)


def test_every_public_loss_is_registered():
    public = {name for name in losses.__all__ if name[0].islower()}
    helpers = {"crd_memory", "crd_update", "empty_queue", "enqueue", "loss", "valid"}
    assert set(LOSSES) == public - helpers
    assert losses.__all__[0] == "perception_coherence"
    assert all(f" {name}" in losses.__doc__ for name in losses.__all__ if name != "LOSSES")


def test_arguments():
    flagship, crd, kernel = (
        LOSSES[name] for name in ("perception_coherence", "crd", "similarity_kl")
    )
    assert flagship.number_defaults == {"temperature": 0.1, "power": 1}
    assert set(crd.arguments) >= {"negatives", "momentum", "class_aware"}
    assert "class_aware" in crd.flags
    assert "pairs" in kernel.flags
    assert LOSSES["dkd"].columns == {"labels": "label"}
    assert needs_labels(LOSSES["dkd"], {})
    assert needs_labels(crd, {"class_aware": True})
    assert not needs_labels(crd, {})


def test_memories():
    pairs = init_memory(LOSSES["perception_coherence"], INIT, {})
    assert [x.shape for x in pairs.points] == [(6, 3), (6, 4)]
    assert init_memory(LOSSES["perception_coherence"], INIT._replace(size=0), {}) is None
    assert init_memory(LOSSES["kd"], INIT, {}) is None
    teachers = init_memory(LOSSES["similarity_kl"], INIT, {"pairs": False})
    assert teachers.points.shape == (6, 4)
    crd = init_memory(LOSSES["crd"], INIT, {"class_aware": True, "momentum": 0.2})
    assert crd.teacher.shape == (10, 4)
    assert crd.classes is not None


def test_keys_differ_by_loss_and_step_and_repeat():
    keys = [jax.random.key_data(step_key(0, *at)) for at in ((0, 1), (1, 1), (0, 2), (0, 1))]
    assert np.array_equal(keys[0], keys[3])
    assert len(np.unique(jnp.stack(keys), axis=0)) == 3


def test_an_unknown_name_is_no_loss():
    assert "unknown" not in LOSSES
    with pytest.raises(KeyError):
        RECIPES["unknown"]
