"""A model of texts as a folder that sentence-transformers and model2vec load.

Names and keys are those that sentence-transformers 2 to 6 read. Only a model with positions cuts
long texts; a table of token vectors reads texts of every length.
"""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from pcjax import __version__, _checks, _io
from pcjax._checks import RequestError
from pcjax.models import bert
from pcjax.models.text import TEXT_MODELS, TextModel

MARKER = "pcjax.json"  # lists the files of a folder: only those are ever replaced
PREVIOUS = ".previous"  # suffix of the replaced folder, until the new one has its name
MODULES = "sentence_transformers.models"
FOR_PYTORCH = {"format": "pt"}  # transformers refuses weights without it
SPECIAL_TOKENS = {
    "unk_token": ("[UNK]", "<unk>"),
    "pad_token": ("[PAD]", "<pad>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
}


def write_sentence_transformers(folder: pathlib.Path, model: TextModel, card: str) -> None:
    """Write a folder that `SentenceTransformer(folder)` loads, whole or not at all.

    A folder that an earlier export wrote is replaced; another one is refused. A table of token
    vectors is written as model2vec does. sentence-transformers divides by all tokens, unknown ones
    included, so that features which are not normalised are shorter there.

    Args:
      folder: the folder.
      model: the model.
      card: the text of README.md.
    """
    _checks.require_name("model of texts", model.name, TEXT_MODELS)
    with _atomic_folder(folder) as unfinished:
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        (unfinished / "tokenizer.json").write_text(tokenizer_json(model), encoding="utf-8")
        (_write_static if model.name == "static" else _write_bert)(unfinished, model)
        settings = {
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        }
        _io.write_json(unfinished / "config_sentence_transformers.json", settings)


def write_model2vec(folder: pathlib.Path, model: TextModel, card: str) -> None:
    """Write a folder that `StaticModel.from_pretrained(folder)` loads, whole or not at all.

    Args:
      folder: the folder; see `write_sentence_transformers`, which reads it too.
      model: a table of token vectors.
      card: the text of README.md.
    """
    if model.name != "static":
        raise RequestError(
            f"model2vec loads tables of token vectors, and this model is {model.name!r}: export "
            "it for sentence-transformers instead."
        )
    rows, tokens = len(static_table(model)), len(_ids(model))
    if rows != tokens:
        raise RequestError(
            f"the model has {rows:,} rows for {tokens:,} tokens, but model2vec reads one row for "
            "each token: export it for sentence-transformers instead."
        )
    write_sentence_transformers(folder, model, card)


def tokenizer_json(model: TextModel) -> str:
    """Return the tokenizer as others should apply it; only a model with positions cuts texts."""
    content = json.loads(model.tokenizer)
    content["padding"] = content["truncation"] = None
    if model.name == "static":
        content["post_processor"] = None
    else:
        content["truncation"] = {
            "direction": "Right",
            "max_length": _limit(model),
            "strategy": "LongestFirst",
            "stride": 0,
        }
    return json.dumps(content, ensure_ascii=False)


def static_table(model: TextModel) -> np.ndarray:
    """Return the rows of all tokens; the unknown one's is 0, so that it does not count."""
    table = np.array(model.arrays["table/embedding"], np.float32)
    if model.options["unknown"] >= 0:
        table[model.options["unknown"]] = 0
    return table


def _limit(model: TextModel) -> int:
    """Return the largest number of tokens of a model with positions."""
    return model.max_tokens or model.options["positions"]


def _ids(model: TextModel) -> dict[str, int]:
    """Return the id of every token, added ones included."""
    import tokenizers

    return tokenizers.Tokenizer.from_str(model.tokenizer).get_vocab()


def _write_static(folder: pathlib.Path, model: TextModel) -> None:
    table, normalise = static_table(model), bool(model.options["normalise"])
    settings = {
        "model_type": "model2vec",
        "architectures": ["StaticModel"],
        "hidden_dim": table.shape[1],
        "seq_length": 1_000_000,
        "max_length": None,
        "normalize": normalise,
        "pooling": "mean",
        "apply_pca": None,
        "sif_coefficient": None,
        "embedding_dtype": "float32",
    }
    _io.write_json(folder / "config.json", settings)
    _write_weights(folder / "model.safetensors", {"embeddings": table})
    _write_modules(folder, [("StaticEmbedding", "."), *_normalize(1, normalise)])


def _write_bert(folder: pathlib.Path, model: TextModel) -> None:
    options, ids = model.options, _ids(model)
    named = {
        key: next((n for n in names if n in ids), None) for key, names in SPECIAL_TOKENS.items()
    }
    special = {key: name for key, name in named.items() if name is not None}
    settings = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": options["vocabulary"],
        "hidden_size": options["width"],
        "num_hidden_layers": options["layers"],
        "num_attention_heads": options["heads"],
        "intermediate_size": options["intermediate"],
        "hidden_act": options["activation"],
        "max_position_embeddings": options["positions"],
        "type_vocab_size": options["types"],
        "layer_norm_eps": options["epsilon"],
        "pad_token_id": ids.get(special.get("pad_token", ""), 0),
        "position_embedding_type": "absolute",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
    }
    limit = _limit(model)
    tokenizer = {
        # Another class would build a tokenizer of its own, instead of reading tokenizer.json.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": limit,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **special,
    }
    sizes = {"max_seq_length": limit, "do_lower_case": False}
    _io.write_json(folder / "config.json", settings)
    _io.write_json(folder / "tokenizer_config.json", tokenizer)
    _io.write_json(folder / "special_tokens_map.json", special)
    _io.write_json(folder / "sentence_bert_config.json", sizes)
    width = options["width"]
    # Nothing reads the pooler, but transformers warns where it is missing.
    pooler = {"pooler.dense.weight": np.zeros((width, width)), "pooler.dense.bias": np.zeros(width)}
    weights = {**pooler, **bert.to_huggingface(model.arrays)}
    _write_weights(folder / "model.safetensors", weights)
    modules = [("Transformer", ""), _write_pooling(folder, options)]
    if options["features"] is not None:
        modules.append(_write_dense(folder, model))
    _write_modules(folder, [*modules, *_normalize(len(modules), options["normalise"])])


def _write_pooling(folder: pathlib.Path, options: Mapping[str, Any]) -> tuple[str, str]:
    kinds = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    used = {"cls": "cls_token", "mean": "mean_tokens"}[options["pooling"]]
    settings = {f"pooling_mode_{kind}": kind == used for kind in kinds}
    path = folder / "1_Pooling"
    path.mkdir()
    _io.write_json(path / "config.json", {"word_embedding_dimension": options["width"], **settings})
    return "Pooling", path.name


def _write_dense(folder: pathlib.Path, model: TextModel) -> tuple[str, str]:
    kernel, bias = model.arrays["embed/kernel"], model.arrays["embed/bias"]
    path = folder / "2_Dense"
    path.mkdir()
    settings = {
        "in_features": kernel.shape[0],
        "out_features": kernel.shape[1],
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    _io.write_json(path / "config.json", settings)
    weights = {"linear.weight": kernel.T, "linear.bias": bias}
    _write_weights(path / "model.safetensors", weights)
    return "Dense", path.name


def _normalize(position: int, normalise: bool) -> list[tuple[str, str]]:
    return [("Normalize", f"{position}_Normalize")] if normalise else []


def _write_modules(folder: pathlib.Path, modules: list[tuple[str, str]]) -> None:
    """List the modules; a module without a folder has the default settings."""
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"{MODULES}.{name}"}
        for number, (name, path) in enumerate(modules)
    ]
    _io.write_json(folder / "modules.json", listed)


def _write_weights(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    # safetensors writes the memory of an array, whatever its strides.
    stored = {name: np.ascontiguousarray(x, np.float32) for name, x in arrays.items()}
    path.write_bytes(safetensors.numpy.save(stored, FOR_PYTORCH))


@contextlib.contextmanager
def _atomic_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary folder that replaces `folder` on success and is deleted on error."""
    folder = folder.absolute()
    unfinished = folder.with_name(folder.name + _io.UNFINISHED)
    previous = folder.with_name(folder.name + PREVIOUS)
    _refuse_foreign(folder)
    for leftover in (unfinished, previous):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        _io.write_json(
            unfinished / MARKER, {"version": __version__, "files": [*_files(unfinished), MARKER]}
        )
        # A folder cannot replace another one that is not empty.
        if folder.exists():
            folder.replace(previous)
        unfinished.replace(folder)
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(folder)) from error
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _files(folder: pathlib.Path) -> list[str]:
    """Return the relative paths of all files of a folder."""
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir())
    return [path.relative_to(folder).as_posix() for path in paths]


def _refuse_foreign(folder: pathlib.Path) -> None:
    """Refuse a path with files that no export wrote."""
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file: name a folder that does not exist.")
    present = set(_files(folder))
    marker = folder / MARKER
    written = _io.read_json(marker)["files"] if marker.is_file() else []
    if foreign := sorted(present - set(written)):
        raise RequestError(
            f"{folder} holds {foreign[0]}, which pcjax did not write: move it, or name another "
            "folder."
        )
