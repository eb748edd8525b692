"""Exports of models of texts: other programs compute the same features from the same texts."""

import dataclasses
import importlib.util
import json
import pathlib
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from pcjax._checks import RequestError
from pcjax.export.card import CardFacts, model_card
from pcjax.export.folders import MARKER, write_model2vec, write_sentence_transformers
from pcjax.export.onnx import Graph, write_onnx
from pcjax.export.safetensors import load
from pcjax.models import build
from pcjax.models.text import PADDING, TextModel

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from small_texts import SPECIAL, uncut, wordpiece  # noqa: E402

WORDS = (
    *("the", "a", "cat", "dog", "sat", "on", "mat", "run", "blue", "sky", "deep", "river"),
    *("שלום", "עולם", "سلام", "🙂", ".", ","),
)
PIECES = ("##s", "##ning", "##er", "##est", "##run", "re")
VOCABULARY = {token: number for number, token in enumerate([*SPECIAL, *WORDS, *PIECES])}
POSITIONS = 16
TEXTS = {
    "known": "The cats sat on the mat.",
    "partly unknown": "the xylophone sat, rerun quetzal dogs",
    "all unknown": "xylophone quetzal",
    "empty": "",
    "blank": " \t\n ",
    "long": " ".join(WORDS[number * number % len(WORDS)] for number in range(600)),
    "emoji": "the cat 🙂 🙂🙃 dog 👩‍👩‍👧",
    "right to left": "שלום, עולם! سلام the dog",
    "special": "[CLS] the [PAD] cat [MASK] [UNK]",
    "accents and case": "THE Cät SAT on the MÄT",
}
BATCHES = [[*TEXTS.values()], [*TEXTS.values()][:7], *([text] for text in TEXTS.values())]
STATIC = {"vocabulary": len(VOCABULARY), "features": 24, "unknown": 1, "normalise": True}
BERT = {
    "vocabulary": len(VOCABULARY),
    "layers": 2,
    "width": 32,
    "heads": 4,
    "intermediate": 48,
    "positions": POSITIONS,
    "types": 2,
    "epsilon": 1e-12,
    "activation": "gelu",
    "pooling": "mean",
    "features": 24,
    "normalise": True,
}
VARIANTS = {
    "static": ("static", {}),
    "static, not normalised": ("static", {"normalise": False}),
    "bert": ("bert", {}),
    "bert, first token": ("bert", {"pooling": "cls", "features": None, "activation": "relu"}),
    "bert, not normalised": ("bert", {"normalise": False, "activation": "gelu_new"}),
}
AGREED = {"rtol": 1e-5, "atol": 1e-5}
CARD = "---\nlibrary_name: model2vec\n---\n# A student\n"
FACTS = CardFacts(
    name="/home/me/runs/a-student",
    architecture="static",
    features=24,
    parameters=696,
    size=2_784,
    shape=(16,),
    stored="int32",
    max_tokens=None,
    formats=("sentence-transformers", "model2vec", "onnx"),
    teacher="/home/me/teachers/a-teacher",
    losses=("perception_coherence",),
    examples=12_345,
    fingerprint="0123abcd",
)


def package(name):
    return pytest.importorskip(name, reason=f"{name} is not installed")


def text_model(variant):
    """Return a model with random weights, and its function of texts."""
    name, changed = VARIANTS[variant]
    options = {"static": STATIC, "bert": BERT}[name] | changed
    module = nnx.eval_shape(
        lambda: build(name, shape=(POSITIONS,), classes=None, rngs=nnx.Rngs(0), **options)
    )
    random = np.random.default_rng(0)
    graph, state = nnx.split(module)
    flat = nnx.to_flat_state(state)
    arrays = {
        "/".join(map(str, path)): random.normal(0.1, 0.5, leaf.shape).astype(np.float32)
        for path, leaf in flat
    }
    filled = [
        (path, leaf.replace(jnp.asarray(arrays["/".join(map(str, path))]))) for path, leaf in flat
    ]
    module = nnx.merge(graph, nnx.from_flat_state(filled))
    module.eval()
    limit = POSITIONS if name == "bert" else None
    tokenizer = uncut(wordpiece(VOCABULARY))
    if limit is not None:
        tokenizer.enable_truncation(limit)

    def features(texts):
        encoded = tokenizer.encode_batch(texts, add_special_tokens=name == "bert")
        rows = [each.ids for each in encoded]
        # A few widths share what is compiled.
        width = next(w for w in (POSITIONS, 1024) if w >= max(map(len, rows)))
        ids = np.array([row + [PADDING] * (width - len(row)) for row in rows], np.int32)
        return np.asarray(compiled(module, jnp.asarray(ids)))

    return TextModel(name, options, arrays, wordpiece(VOCABULARY), limit), features


@nnx.jit
def compiled(module, ids):
    return module(ids).features


static = pytest.mark.parametrize("variant", [v for v in VARIANTS if v.startswith("static")])
every = pytest.mark.parametrize("variant", VARIANTS)


def test_features_are_of_texts_alone(tmp_path):
    model, _ = text_model("static")
    write_sentence_transformers(tmp_path / "st", model, CARD)
    loaded = load(tmp_path / "st")
    expected = loaded.features(["the cat", "a dog"])
    for given in (iter(["the cat", "a dog"]), (t for t in ("the cat", "a dog"))):
        np.testing.assert_array_equal(loaded.features(given), expected)
    np.testing.assert_array_equal(loaded.features(np.array(["the cat", "a dog"])), expected)
    for given, reason in (
        ("a text", "got str: expected a list of texts"),
        (b"a text", "got bytes: expected a list of texts"),
        (None, "got NoneType: expected a list of texts"),
        (["a", None], r"got texts\[1\] None: expected a text"),
        (iter([1]), r"got texts\[0\] 1: expected a text"),
        (["a", "b \ud800"], r"texts\[1\] holds half of a surrogate pair; write it as UTF-8"),
    ):
        with pytest.raises(RequestError, match=rf"^{reason}$"):
            loaded.features(given)


def test_onnx_files_are_for_onnxruntime(tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/model.onnx").write_bytes(b"")
    for path in (tmp_path / "onnx", tmp_path / "onnx/model.onnx"):
        with pytest.raises(RequestError, match="ONNX: load it with onnxruntime; pcjax loads") as e:
            load(path)
        assert str(e.value).endswith(f"pcjax loads {tmp_path}.")


@static
def test_model2vec_computes_the_same_features(variant, tmp_path):
    model2vec = package("model2vec")
    model, features = text_model(variant)
    write_model2vec(tmp_path / "student", model, model_card(FACTS))
    loaded = model2vec.StaticModel.from_pretrained(tmp_path / "student")
    for texts in BATCHES:
        np.testing.assert_allclose(loaded.encode(texts), features(texts), **AGREED)


@every
def test_onnxruntime_computes_the_same_features(variant, tmp_path):
    package("onnx")
    model, features = text_model(variant)
    write_onnx(tmp_path / "onnx" / "model.onnx", model)
    session, tokenizer = onnx_session(tmp_path / "onnx")
    for texts in BATCHES:
        outputs = run_session(session, tokenizer, texts)
        np.testing.assert_allclose(outputs["sentence_embedding"], features(texts), **AGREED)


@every
def test_weights_in_eight_bits_compute_nearly_the_same_features(variant, tmp_path):
    package("onnx")
    model, features = text_model(variant)
    for folder, int8 in (("whole", False), ("small", True)):
        write_onnx(tmp_path / folder / "model.onnx", model, int8=int8)
    whole, small = (tmp_path / name / "model.onnx" for name in ("whole", "small"))
    assert small.stat().st_size < whole.stat().st_size
    texts = [text for text in TEXTS.values() if text.strip() and text != TEXTS["all unknown"]]
    vectors = run_session(*onnx_session(small.parent), texts)["sentence_embedding"]
    cosines = np.sum(unit(vectors) * unit(features(texts)), axis=1)
    assert cosines.min() > 0.99


def onnx_session(folder):
    runtime = package("onnxruntime")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    return runtime.InferenceSession(folder / "model.onnx"), tokenizer


def run_session(session, tokenizer, texts):
    encoded = tokenizer.encode_batch(texts)
    inputs = {
        "input_ids": np.array([each.ids for each in encoded], np.int64),
        "attention_mask": np.array([each.attention_mask for each in encoded], np.int64),
    }
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def test_texts_without_a_known_token_have_no_features(tmp_path):
    package("onnx")
    model, _ = text_model("static")
    write_onnx(tmp_path / "model.onnx", model)
    session, tokenizer = onnx_session(tmp_path)
    texts = [TEXTS[name] for name in ("empty", "blank", "all unknown")]
    for batch in ([*texts, "the cat"], *([text] for text in texts)):
        vectors = run_session(session, tokenizer, batch)["sentence_embedding"]
        norms = np.linalg.norm(vectors, axis=1)
        np.testing.assert_allclose(norms, [float(text == "the cat") for text in batch], rtol=1e-6)


def test_onnx_files_suit_older_runtimes(tmp_path):
    onnx = package("onnx")
    model, _ = text_model("bert")
    write_onnx(tmp_path / "model.onnx", model)
    loaded = onnx.load(tmp_path / "model.onnx")
    assert loaded.ir_version == 8
    assert [(each.domain, each.version) for each in loaded.opset_import] == [("", 18)]
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*loaded.graph.input, *loaded.graph.output)
    }
    assert shapes == {
        "input_ids": ["batch", "tokens"],
        "attention_mask": ["batch", "tokens"],
        "last_hidden_state": ["batch", "tokens", BERT["width"]],
        "sentence_embedding": ["batch", BERT["features"]],
    }


def test_a_graph_with_a_missing_value_is_refused():
    onnx = package("onnx")
    graph = Graph("broken")
    x = graph.input("x", np.float32, ("batch", 2))
    graph.output("y", graph.add("Add", [x, "z"]), np.float32, ("batch", 2))
    with pytest.raises(onnx.checker.ValidationError):
        graph.model()


def test_onnx_needs_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(RequestError, match=r'pip install "pcjax\[onnx\]"'):
        write_onnx(tmp_path / "model.onnx", text_model("static")[0])


@pytest.mark.nightly
@every
def test_sentence_transformers_computes_the_same_features(variant, tmp_path):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    package("sentence_transformers")
    model, features = text_model(variant)
    write_sentence_transformers(tmp_path / "student", model, model_card(FACTS))
    compare_with_sentence_transformers(tmp_path / "student", features, model)


def compare_with_sentence_transformers(folder, features, model):
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(str(folder), device="cpu")
    for texts in BATCHES:
        vectors, expected = loaded.encode(texts), features(texts)
        if not model.options["normalise"] and model.name == "static":
            # Its mean is over the unknown tokens, too.
            vectors, expected = unit(vectors), unit(expected)
        np.testing.assert_allclose(vectors, expected, **AGREED)


def unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def test_the_row_of_the_unknown_token_is_zero(tmp_path):
    model, _ = text_model("static")
    write_model2vec(tmp_path / "student", model, CARD)
    stored = safetensors.numpy.load_file(tmp_path / "student" / "model.safetensors")
    expected = model.arrays["table/embedding"].copy()
    expected[STATIC["unknown"]] = 0
    np.testing.assert_array_equal(stored["embeddings"], expected)
    assert model.arrays["table/embedding"][STATIC["unknown"]].any()


def test_nothing_cuts_the_texts_of_a_table(tmp_path):
    model, _ = text_model("static")
    write_model2vec(tmp_path / "student", model, CARD)
    tokenizer = json.loads((tmp_path / "student" / "tokenizer.json").read_text())
    assert [tokenizer[k] for k in ("post_processor", "truncation", "padding")] == [None] * 3
    assert json.loads((tmp_path / "student" / "config.json").read_text())["max_length"] is None


def test_folders_of_a_transformer_have_the_files_of_transformers(tmp_path):
    model, _ = text_model("bert")
    folder = tmp_path / "student"
    write_sentence_transformers(folder, model, CARD)
    modules = json.loads((folder / "modules.json").read_text())
    assert [(each["path"], each["type"].rpartition(".")[2]) for each in modules] == [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        ("2_Dense", "Dense"),
        ("3_Normalize", "Normalize"),
    ]
    sizes = json.loads((folder / "sentence_bert_config.json").read_text())
    assert sizes["max_seq_length"] == POSITIONS
    with safetensors.safe_open(folder / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        key = file.get_tensor("encoder.layer.0.intermediate.dense.weight")
    assert key.shape == (BERT["intermediate"], BERT["width"])


def test_model2vec_takes_tables_only(tmp_path):
    model, _ = text_model("bert")
    with pytest.raises(RequestError, match="model2vec loads tables"):
        write_model2vec(tmp_path / "student", model, CARD)


def test_model2vec_needs_a_row_for_each_token(tmp_path):
    model, _ = text_model("static")
    arrays = {"table/embedding": np.ones((len(VOCABULARY) + 1, 24), np.float32)}
    with pytest.raises(RequestError, match="one row for each token"):
        write_model2vec(tmp_path / "student", dataclasses.replace(model, arrays=arrays), CARD)
    assert not (tmp_path / "student").exists()


def test_an_export_replaces_an_earlier_one(tmp_path):
    model, _ = text_model("static")
    folder = tmp_path / "student"
    write_model2vec(folder, model, CARD)
    first = snapshot(folder)
    assert sorted(json.loads(first[MARKER])["files"]) == sorted(first)
    write_model2vec(folder, model, CARD + "again")
    assert snapshot(folder) == first | {"README.md": (CARD + "again").encode()}
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_folders_with_files_of_others_are_refused(tmp_path):
    model, _ = text_model("static")
    folder = tmp_path / "student"
    folder.mkdir()
    write_model2vec(folder, model, CARD)  # an empty folder is free
    (folder / "notes.txt").write_text("mine")
    before = snapshot(folder)
    for path in (folder, folder / "notes.txt"):
        with pytest.raises(RequestError):
            write_model2vec(path, model, CARD)
    assert snapshot(folder) == before


def test_a_failed_export_leaves_the_earlier_one(tmp_path):
    model, _ = text_model("static")
    folder = tmp_path / "student"
    write_model2vec(folder, model, CARD)
    before = snapshot(folder)
    broken = dataclasses.replace(model, options={**STATIC, "normalise": np.array([1, 2])})
    with pytest.raises(ValueError, match="ambiguous"):
        write_model2vec(folder, broken, CARD)
    assert snapshot(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def snapshot(folder: pathlib.Path):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_cards_have_no_path_of_the_machine():
    facts = dataclasses.replace(
        FACTS, columns=("model", "spearman", "texts"), rows=(("/home/me/x|y", 0.123456, 12_345),)
    )
    text = model_card(facts)
    assert "/home" not in text
    assert "`a-teacher`" in text
    assert "# a-student\n" in text
    assert "| x\\|y | 0.1235 | 12,345 |" in text


def test_cards_leave_out_what_is_not_known():
    text = model_card(FACTS)
    front = text.split("---")[1]
    assert "library_name" in front
    assert not any(f"{key}:" in front for key in ("license", "base_model", "language"))
    assert "## Measured" not in text


def test_cards_state_what_is_known():
    facts = dataclasses.replace(
        FACTS,
        base_model="an-owner/a-teacher",
        licence="mit",
        teacher_licence="apache-2.0",
        languages=("en", "de"),
    )
    text = model_card(facts)
    front = text.split("---")[1]
    for line in ('license: "mit"', 'base_model: "an-owner/a-teacher"', 'language: ["en", "de"]'):
        assert line in front
    for part in ("12,345 texts", "0123abcd", "StaticModel.from_pretrained", "onnxruntime"):
        assert part in text
    assert "The licence of the teacher is apache-2.0." in text


def test_only_an_aligned_student_queries_the_index_of_its_teacher():
    assert "cannot query the teacher's index" in model_card(FACTS)
    aligned = model_card(dataclasses.replace(FACTS, aligned=True))
    assert "can query the teacher's index" in aligned
