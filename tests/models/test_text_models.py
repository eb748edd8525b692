"""Models of texts: a mean of rows by hand, and BERT against an encoder in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pcjax._checks import RequestError
from pcjax.models import bert, build
from pcjax.models.functional import functional, functional_shapes

pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from small_texts import BERT, bert_tensors, numpy_bert, padded, unit

TABLE = np.array([[3, 4, 0], [0, 0, 9], [1, 1, 1], [-3, -4, 0], [1, 0, 0]], np.float32)
ROWS = [[5, 9, 3, 7], [2, 60, 60, 11, 4, 1, 30, 8, 9], [0], [*range(16)], [1, 1]]


def model(name, arrays=None, *, classes=None, **options):
    """Return a model as a function, and its parameters: those given, others random."""
    function, parameters, _ = functional(
        lambda seed: build(
            name, shape=(8,), classes=classes, rngs=nnx.Rngs(jax.random.key(seed)), **options
        ),
        0,
    )
    return function, parameters | {n: jnp.asarray(x) for n, x in (arrays or {}).items()}


def output(function, parameters, ids):
    @jax.jit
    def compute(parameters, ids):
        return function.apply(parameters, {}, ids, train=False)[0]

    return compute(parameters, jnp.asarray(ids))


def features(function, parameters, ids):
    return np.asarray(output(function, parameters, ids).features)


def static(**options):
    return model("static", {"table/embedding": TABLE}, vocabulary=5, features=3, **options)


def test_the_features_of_a_table_are_the_mean_of_its_rows():
    ids = padded([[0, 2], [4, 0, 0, 2], [1], [3, 0], []], 5)
    expected = np.array([[2, 2.5, 0.5], [2, 2.25, 0.25], [0, 0, 9], [0, 0, 0], [0, 0, 0]])
    made = features(*static(normalise=False), ids)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected, atol=1e-6)
    norms = np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(
        features(*static(), ids), expected / np.where(norms, norms, 1), atol=1e-6
    )


def test_an_unknown_token_does_not_count():
    ids = padded([[1, 0, 1, 2], [1, 1], [0, 2]])
    expected = [[2, 2.5, 0.5], [0, 0, 0], [2, 2.5, 0.5]]
    np.testing.assert_allclose(
        features(*static(unknown=1, normalise=False), ids), expected, atol=1e-6
    )
    counted = features(*static(normalise=False), ids)
    np.testing.assert_allclose(counted[0], [1, 1.25, 4.75], atol=1e-6)


def test_a_classifier_reads_the_features():
    function, parameters = static(classes=2)
    made = output(function, parameters, padded([[0, 2], [4]]))
    kernel = np.asarray(parameters["classify/kernel"])
    np.testing.assert_allclose(made.logits, made.features @ kernel, atol=1e-6)
    assert made.logits.shape == (2, 2)


def bert_shapes(classes=None, **options):
    """Return a BERT as a function, and the shapes of its parameters."""

    def make(_):
        return build("bert", shape=(8,), classes=classes, rngs=nnx.Rngs(0), **(BERT | options))

    function, parameters, _ = functional_shapes(make)
    return function, {name: leaf.shape for name, leaf in parameters.items()}


def encoder(tensors, dense=None, **options):
    """Return a BERT with Hugging Face's weights, and perhaps a linear layer (outputs, inputs)."""
    function, shapes = bert_shapes(**options)
    arrays = bert.from_huggingface(tensors, shapes)
    if dense is not None:
        arrays |= {"embed/kernel": dense[0].T, "embed/bias": dense[1]}
    assert arrays.keys() == shapes.keys()
    return function, {name: jnp.asarray(array) for name, array in arrays.items()}


def oracle(tensors, rows=ROWS, activation="gelu", pooling="mean"):
    options = {"heads": BERT["heads"], "epsilon": BERT["epsilon"]}
    return numpy_bert(tensors, rows, activation=activation, pooling=pooling, **options)


@pytest.mark.parametrize(
    ("activation", "pooling", "normalise", "dense"),
    [
        ("gelu", "mean", True, False),
        ("gelu", "cls", False, True),
        ("gelu_new", "mean", False, True),
        ("relu", "cls", True, False),
        ("relu", "mean", True, True),
    ],
)
def test_bert_is_that_of_its_authors(activation, pooling, normalise, dense, rng):
    tensors = bert_tensors()
    layer = (rng.normal(size=(5, 12)).astype(np.float32), rng.normal(size=5).astype(np.float32))
    made = features(
        *encoder(
            tensors,
            layer if dense else None,
            features=5 if dense else None,
            activation=activation,
            pooling=pooling,
            normalise=normalise,
        ),
        padded(ROWS),
    )
    expected = oracle(tensors, activation=activation, pooling=pooling)
    if dense:
        expected = expected @ layer[0].T + layer[1]
    if normalise:
        expected = unit(expected)
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)


def test_padding_does_not_change_the_features():
    tensors = bert_tensors()
    function, parameters = encoder(tensors, normalise=False)
    short = [row for row in ROWS if len(row) <= 9]
    expected = oracle(tensors, short)  # each row by itself
    for width in (9, 16):
        made = features(function, parameters, padded(short, width))
        np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_near():
    tensors = bert_tensors()
    made = features(*encoder(tensors, dtype=jnp.bfloat16), padded(ROWS))
    exact = features(*encoder(tensors), padded(ROWS))
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, unit(oracle(tensors)), atol=2e-2)
    assert np.abs(made - exact).max() > 1e-5  # it was bfloat16


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_empty_text_has_finite_features_and_gradients(pooling):
    function, parameters = encoder(bert_tensors(), pooling=pooling)
    ids = padded([[], [3, 5], [7]], 4)

    def loss(parameters):
        made = function.apply(parameters, {}, jnp.asarray(ids), train=True)[0].features
        return jnp.sum(made * jnp.arange(made.size).reshape(made.shape)), made

    gradients, made = jax.jit(jax.grad(loss, has_aux=True))(parameters)
    assert np.isfinite(made).all()
    if pooling == "mean":
        assert not made[0].any()
    np.testing.assert_allclose(np.linalg.norm(made[1:], axis=1), 1, rtol=1e-5)
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
        # A bias of all keys changes no share of attention.
        assert np.abs(gradient).max() > 1e-6 or name.endswith("key/bias"), name


def test_gradients_of_an_empty_text_in_a_table_are_finite():
    function, parameters = static(unknown=1)

    def loss(parameters):
        ids = jnp.asarray(padded([[], [1], [0, 2]], 3))
        return jnp.sum(function.apply(parameters, {}, ids, train=True)[0].features ** 3)

    (gradient,) = jax.jit(jax.grad(loss))(parameters).values()
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).max(axis=1) > 0).tolist() == [True, False, True, False, False]


@pytest.mark.bad_input
def test_other_inputs_are_refused():
    function, parameters = encoder(bert_tensors())
    with pytest.raises(RequestError, match="got texts of 17 tokens: this model reads 16; cut them"):
        output(function, parameters, np.zeros((2, 17), np.int32))
    for shape, dtype in (((2, 3), np.float32), ((2, 3, 3), np.int32), ((3,), np.int32)):
        with pytest.raises(RequestError, match=r"expected token ids \(n, tokens\)"):
            output(function, parameters, np.zeros(shape, dtype))


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("bert", {"width": 10, "heads": 4}, "got width 10 and 4 heads: expected a multiple"),
        ("bert", {"layers": 0}, "got layers 0: expected an integer of at least 1"),
        ("bert", {"positions": 2.5}, "got positions 2.5: expected an integer"),
        ("bert", {"activation": "silu"}, "unknown activation 'silu'"),
        ("bert", {"pooling": "max"}, "unknown pooling 'max'"),
        ("bert", {"features": 0}, "got features 0: expected an integer of at least 1"),
        ("static", {"vocabulary": 0}, "got vocabulary 0: expected an integer of at least 1"),
        ("static", {"features": 0}, "got features 0: expected an integer of at least 1"),
    ],
)
@pytest.mark.bad_input
def test_other_options_are_refused(name, options, reason):
    with pytest.raises(RequestError, match=reason):
        build(name, shape=(8,), classes=None, rngs=nnx.Rngs(0), **options)
    with pytest.raises(RequestError, match=r"got shape \(8, 8, 1\): expected texts as lists of"):
        build(name, shape=(8, 8, 1), classes=None, rngs=nnx.Rngs(0))


def test_names_of_hugging_face_come_back():
    tensors, shapes = bert_tensors(), bert_shapes(3, features=5)[1]
    arrays = bert.from_huggingface(tensors, shapes)
    assert {*shapes} - {*arrays} == {
        *("embed/kernel", "embed/bias", "classify/kernel", "classify/bias")
    }
    returned = bert.to_huggingface(arrays | {"embed/kernel": np.zeros((12, 5), np.float32)})
    assert returned.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(returned[name], tensor, err_msg=name)
        assert returned[name].flags.c_contiguous


def test_older_names_and_other_heads_are_accepted():
    tensors, shapes = bert_tensors(), bert_shapes(3)[1]
    renamed = {
        "bert." + name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): x
        for name, x in tensors.items()
    }
    renamed["bert.pooler.dense.weight"] = renamed["cls.predictions.bias"] = np.zeros(3)
    renamed["bert.embeddings.position_ids"] = np.arange(16)[None]
    arrays = bert.from_huggingface(renamed, shapes)
    for name, array in bert.from_huggingface(tensors, shapes).items():
        np.testing.assert_array_equal(arrays[name], array)


def test_tensors_that_do_not_fit_are_refused_by_name():
    tensors, shapes = bert_tensors(), bert_shapes(3)[1]
    name = "encoder.layer.1.attention.self.key.weight"
    with pytest.raises(RequestError, match=f"it has no tensor {name}"):
        bert.from_huggingface({n: x for n, x in tensors.items() if n != name}, shapes)
    surplus = tensors | {"encoder.layer.2.output.dense.bias": np.zeros(12)}
    with pytest.raises(RequestError, match=r"its tensor encoder.layer.2.output.dense.bias belongs"):
        bert.from_huggingface(surplus, shapes)
    name = "encoder.layer.0.intermediate.dense.weight"
    with pytest.raises(RequestError, match=rf"its tensor {name} has shape \(12, 20\), not that"):
        bert.from_huggingface(tensors | {name: tensors[name].T}, shapes)
