"""Small tokenizers, encoders and an oracle for them, which the tests of texts share."""

import json

import ml_dtypes
import numpy as np
import pytest
import scipy.special

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
UNKNOWN, FIRST, LAST = 1, 2, 3  # of SPECIAL
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ("the", "cat", "dog", "sat", "mat", "run", "##ning", "##er", "##at", ".", ",")
# Special tokens come last but two, so that numbers change when words are left out.
SPELLING = [*SPECIAL[:2], *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS), *SPECIAL[2:]]
SENTENCES = [
    "The cat sat on the mat.",
    "dogs run, running runners",
    "a xylophone",
    "The dog sat.",
    "cats at sea",
    "the the the 🙂 dog",
    "Zebras quit jumping over a very lazy box of wax",
    "cat",
]


def numbered(tokens):
    return {token: number for number, token in enumerate(tokens)}


VOCABULARY = numbered([*SPECIAL, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)])


def wordpiece(vocabulary=VOCABULARY, lowercase=True):
    """Return the JSON of BERT's tokenizer with a few tokens."""
    unknown = {"unk_token": "[UNK]"}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, **unknown))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens([*SPECIAL])
    tokenizer.enable_truncation(4)  # of another program: pcjax has its own limit
    tokenizer.enable_padding(length=9)
    return tokenizer.to_str()


def uncut(text):
    """Return a tokenizer that neither cuts nor pads."""
    tokenizer = tokenizers.Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


BERT = {
    "vocabulary": len(VOCABULARY),
    "layers": 2,
    "width": 12,
    "heads": 3,
    "intermediate": 20,
    "positions": 16,
    "types": 2,
    "epsilon": 0.01,
    "activation": "gelu",
}


def bert_tensors(options=BERT, seed=0):
    """Return random weights of a BERT by Hugging Face's names; kernels are (outputs, inputs)."""
    width, inner = options["width"], options["intermediate"]
    shapes = {
        f"embeddings.{name}_embeddings.weight": (options[size], width)
        for name, size in (
            ("word", "vocabulary"),
            ("position", "positions"),
            ("token_type", "types"),
        )
    }
    norms = ["embeddings.LayerNorm"]
    for number in range(options["layers"]):
        layer = f"encoder.layer.{number}"
        kernels = {f"attention.self.{name}": (width, width) for name in ("query", "key", "value")}
        kernels |= {
            "attention.output.dense": (width, width),
            "intermediate.dense": (inner, width),
            "output.dense": (width, inner),
        }
        for name, shape in kernels.items():
            shapes[f"{layer}.{name}.weight"], shapes[f"{layer}.{name}.bias"] = shape, shape[:1]
        norms += [f"{layer}.{name}.LayerNorm" for name in ("attention.output", "output")]
    for norm in norms:
        shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (width,)
    random = np.random.default_rng(seed)
    return {n: random.normal(0.1, 0.5, shape).astype(np.float32) for n, shape in shapes.items()}


def numpy_bert(tensors, rows, *, heads, epsilon, activation, pooling="mean"):
    """Compute the pooled states of texts, one by one, in float64 and as BERT's authors wrote it."""
    w = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}

    def norm(x, name):
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
        return scaled * w[f"{name}.LayerNorm.weight"] + w[f"{name}.LayerNorm.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def hidden(x):
        if activation == "relu":
            return np.maximum(x, 0)
        if activation == "gelu_new":
            return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        return x / 2 * (1 + scipy.special.erf(x / np.sqrt(2)))

    def one(ids):
        x = w["embeddings.word_embeddings.weight"][ids]
        x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
        x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings")
        layers = {name.split(".")[2] for name in w if name.startswith("encoder.layer.")}
        for number in sorted(layers, key=int):
            layer = f"encoder.layer.{number}"
            query, key, value = (
                linear(x, f"{layer}.attention.self.{name}") for name in ("query", "key", "value")
            )
            mixed = []
            for part in np.split(np.arange(x.shape[1]), heads):
                scores = query[:, part] @ key[:, part].T / np.sqrt(len(part))
                mixed.append(scipy.special.softmax(scores, axis=1) @ value[:, part])
            attention = linear(np.concatenate(mixed, axis=1), f"{layer}.attention.output.dense")
            x = norm(x + attention, f"{layer}.attention.output")
            inner = hidden(linear(x, f"{layer}.intermediate.dense"))
            x = norm(x + linear(inner, f"{layer}.output.dense"), f"{layer}.output")
        return x[0] if pooling == "cls" else x.mean(axis=0)

    return np.stack([one(np.asarray(ids)) for ids in rows])


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def padded(rows, width=None):
    """Pad lists of tokens with -1."""
    width = width or max(map(len, rows))
    return np.array([[*row, *[-1] * (width - len(row))] for row in rows], np.int32)


def write_safetensors(path, tensors, dtype="F32"):
    """Write a safetensors file as its specification describes it."""
    dtypes = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    header, content = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in tensors.items():
        data = tensor.astype(dtypes[dtype]).tobytes()
        offsets = [len(content), len(content) + len(data)]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        content += data
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + content)


CONFIG = {
    "model_type": "bert",
    "vocab_size": BERT["vocabulary"],
    "num_hidden_layers": BERT["layers"],
    "hidden_size": BERT["width"],
    "num_attention_heads": BERT["heads"],
    "intermediate_size": BERT["intermediate"],
    "max_position_embeddings": BERT["positions"],
    "type_vocab_size": BERT["types"],
    "layer_norm_eps": BERT["epsilon"],
    "hidden_act": BERT["activation"],
    "attention_probs_dropout_prob": 0.1,
}
TYPES = "sentence_transformers.models."
IDENTITY = "torch.nn.modules.linear.Identity"
TENSORS = bert_tensors()
DENSE = {
    "linear.weight": np.random.default_rng(1).normal(size=(7, 12)).astype(np.float32),
    "linear.bias": np.random.default_rng(2).normal(size=7).astype(np.float32),
}


def write_json(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def change(path, **changed):
    write_json(path, json.loads(path.read_text()) | changed)


def write_modules(folder, *modules):
    kinds = {"": "Transformer", "0_StaticEmbedding": "StaticEmbedding"}
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": TYPES + kinds.get(path, path[2:])}
        for n, path in enumerate(modules)
    ]
    write_json(folder / "modules.json", modules)


def write_bert(folder, *, pooling="mean_tokens", dense=True, normalise=True, dtype="F32"):
    """Write a folder as sentence-transformers 2 to 5 do."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", CONFIG)
    (folder / "tokenizer.json").write_text(wordpiece())
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 10, "do_lower_case": False})
    write_safetensors(folder / "model.safetensors", TENSORS, dtype)
    modes = {f"pooling_mode_{name}": name == pooling for name in ("cls_token", "mean_tokens")}
    modes["pooling_mode_max_tokens"] = pooling == "max_tokens"
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": 12, **modes})
    if dense:
        settings = {"in_features": 12, "out_features": 7, "activation_function": IDENTITY}
        write_json(folder / "2_Dense/config.json", settings)
        write_safetensors(folder / "2_Dense/model.safetensors", DENSE, dtype)
    write_modules(folder, "", "1_Pooling", *["2_Dense"] * dense, *["3_Normalize"] * normalise)
    return folder


def oracle(tensors=TENSORS, texts=SENTENCES, pooling="mean", dense=DENSE, limit=10):
    """Return the features of texts in a folder of `write_bert`, not normalised."""
    tokenizer = uncut(wordpiece())
    tokenizer.enable_truncation(limit)
    rows = [tokenizer.encode(text).ids for text in texts]
    options = {"heads": BERT["heads"], "epsilon": BERT["epsilon"], "activation": "gelu"}
    states = numpy_bert(tensors, rows, pooling=pooling, **options)
    return states if dense is None else states @ dense["linear.weight"].T + dense["linear.bias"]
