"""Read encoders from folders of sentence-transformers and model2vec; no code of others runs."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from pcjax import _checks, _io
from pcjax._checks import RequestError
from pcjax.data import Dataset, tokens
from pcjax.data.tokens import Vocabulary
from pcjax.models import bert
from pcjax.models.functional import Functional
from pcjax.teachers.encoder import ModelEncoder, function_of
from pcjax.teachers.tensors import AGAIN, WEIGHTS, load_folder, read_licence, read_object
from pcjax.training.embedding import FrozenModel

CONVERT = "SentenceTransformer(FOLDER).save(OTHER)"
REMEDY = "compute its vectors elsewhere and give --teacher.source vectors:FILE"
WIDTH = 256  # tokens, in shapes that are only described
PACKAGE = "sentence_transformers."
# The modules of a folder, in the order in which they are applied.
KINDS = (
    *(
        ("Transformer", "Pooling", *dense, *normalize)
        for dense in ((), ("Dense",))
        for normalize in ((), ("Normalize",))
    ),
    ("StaticEmbedding",),
    ("StaticEmbedding", "Normalize"),
)
# Fields of config.json and what transformers takes where one is missing.
FIELDS = {
    "vocabulary": ("vocab_size", 30_522),
    "layers": ("num_hidden_layers", 12),
    "width": ("hidden_size", 768),
    "heads": ("num_attention_heads", 12),
    "intermediate": ("intermediate_size", 3072),
    "positions": ("max_position_embeddings", 512),
    "types": ("type_vocab_size", 2),
}
MOST_LAYERS, MOST = 512, 2**24


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TextEncoder(ModelEncoder):
    """A model of texts in a folder, and how it reads them.

    kind: its architecture, "bert" or "static".
    options: of the architecture.
    tokenizer: the JSON of its tokenizer.
    max_tokens: longer texts are cut to so many tokens; None: never.
    prompt: put before every text.
    lower: whether texts are put in lower case before.
    """

    kind: str
    options: Mapping[str, Any]
    tokenizer: str
    max_tokens: int | None
    prompt: str = ""
    lower: bool = False

    def check(self, dataset: Dataset) -> None:
        """Refuse examples that are no texts."""
        tokens.texts_of(dataset.train)

    def view(self, dataset: Dataset) -> Dataset:
        """Return texts as tokens."""
        return tokens.tokenised(dataset, self.vocabulary())

    def settings(self) -> dict[str, Any]:
        """Return the architecture, the tokenizer and the limit of tokens."""
        vocabulary = self.vocabulary()
        return {
            "architecture": self.kind,
            "options": dict(self.options),
            "tokenizer": vocabulary.digest,
            "max_tokens": vocabulary.limit,
        }

    def vocabulary(self) -> Vocabulary:
        """Return how the model reads texts."""
        limit = self.max_tokens
        made = tokens.vocabulary(self.tokenizer, limit=limit, width=limit or WIDTH, where=self.name)
        return made._replace(prompt=self.prompt, lower=self.lower)

    def unnormalised(self) -> FrozenModel:
        """Return the model without the scaling of its features to length 1."""
        options = {**self.options, "normalise": False}
        return FrozenModel(_function(self.kind, options)[0], self.model.parameters, {})


def read_encoder(folder: pathlib.Path) -> TextEncoder:
    """Read the encoder of a folder; refuse in one line what pcjax cannot compute.

    Args:
      folder: config.json, model.safetensors and tokenizer.json, and modules.json where pooling,
        a linear layer and normalisation follow. Without modules.json the tokens' mean is taken.
    """
    modules = _modules(folder)
    root = modules.get("Transformer", folder)
    if "StaticEmbedding" not in modules:
        if not (root / "config.json").is_file():
            raise RequestError(
                f"{root} has no config.json; the folder of an encoder has config.json, {WEIGHTS} "
                "and tokenizer.json."
            )
        settings = read_object(root / "config.json")
        if settings.get("model_type") != "model2vec":
            return _read_bert(folder, modules, settings)
    return _read_static(folder, modules)


def _modules(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Return the folders of the modules by kind, in their order."""
    path = folder / "modules.json"
    if not path.is_file():
        return {}
    listed = []
    modules = _io.read_json(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise RequestError(f"{path} does not hold a list of objects.")
    for module in modules:
        name = str(module.get("type", ""))
        place = (folder / str(module.get("path", ""))).resolve()
        if not place.is_relative_to(folder.resolve()):
            raise RequestError(f"{path}: the path {module['path']!r} leads out of the folder.")
        known = name.startswith(PACKAGE)
        listed.append((name.rpartition(".")[2] if known else name, place))
    kinds = tuple(kind for kind, _ in listed)
    if kinds not in KINDS:
        raise RequestError(
            f"{path}: the modules {', '.join(kinds) or 'of an empty list'} are not supported; "
            f"{REMEDY}."
        )
    return dict(listed)


def _read_bert(
    folder: pathlib.Path, modules: Mapping[str, pathlib.Path], settings: Mapping[str, Any]
) -> TextEncoder:
    root = modules.get("Transformer", folder)
    path = root / "config.json"
    options = _bert_options(path, settings)
    options["pooling"] = _pooling(modules["Pooling"]) if modules else "mean"
    dense = _dense(modules["Dense"], options["width"]) if "Dense" in modules else {}
    options["features"] = None if not dense else len(dense["embed/bias"])
    options["normalise"] = "Normalize" in modules
    try:
        function, shapes = _function("bert", options)
    except RequestError as error:
        raise RequestError(f"{path}: {error}.") from error
    own = {name: shape.shape for name, shape in shapes.items() if name not in dense}
    arrays = load_folder(root, lambda tensors: bert.from_huggingface(tensors, own), CONVERT) | dense
    tokenizer = _tokenizer(root)
    _check_tokenizer(root, tokenizer, options["vocabulary"])
    return TextEncoder(
        name=folder.resolve().name,
        kind="bert",
        options=options,
        width=options["features"] or options["width"],
        model=FrozenModel(function, {n: jax.numpy.asarray(x) for n, x in arrays.items()}, {}),
        tokenizer=tokenizer,
        max_tokens=_max_tokens(root, options["positions"]),
        prompt=_prompt(folder),
        lower=read_object(root / "sentence_bert_config.json", missing={}).get("do_lower_case")
        is True,
        licence=read_licence(folder),
    )


def _bert_options(path: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    kind = settings.get("model_type")
    positions = settings.get("position_embedding_type", "absolute")
    for field, value, expected in (
        ("model_type", kind, "bert"),
        ("position_embedding_type", positions, "absolute"),
    ):
        if value != expected:
            raise RequestError(
                f"{path}: {field} {value!r} is not supported; pcjax reads BERT-family encoders, "
                f"of {field} {expected!r}; {REMEDY}."
            )
    options: dict[str, Any] = {}
    for name, (field, default) in FIELDS.items():
        options[name] = settings.get(field, default)
        most = MOST_LAYERS if name == "layers" else MOST
        _checks.require_whole(f"{path}: {field}", options[name], 1, most)
    epsilon, activation = settings.get("layer_norm_eps", 1e-12), settings.get("hidden_act", "gelu")
    _checks.require_positive(f"{path}: layer_norm_eps", epsilon)
    _checks.require_name(f"{path}: hidden_act", activation, bert.ACTIVATIONS, f"; {REMEDY}")
    return options | {"epsilon": float(epsilon), "activation": activation}


def _max_tokens(root: pathlib.Path, positions: int) -> int:
    """Return how many tokens of a text are read: the first number that a file names."""
    for name, field in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        limit = read_object(root / name, missing={}).get(field)
        if limit is not None:
            # A tokenizer without a limit has a float of 1e30 there, or as long an integer.
            if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit >= 1:
                raise RequestError(f"{root / name}: {field} {limit!r} is not a number of tokens.")
            return int(min(limit, positions))
    return positions


def _prompt(folder: pathlib.Path) -> str:
    """Return the text that stands before every text by default."""
    path = folder / "config_sentence_transformers.json"
    settings = read_object(path, missing={})
    if settings.get("truncate_dim") is not None:
        raise RequestError(f"{path}: truncate_dim is not supported; {REMEDY}.")
    name, prompts = settings.get("default_prompt_name"), settings.get("prompts") or {}
    if name is None:
        return ""
    if not isinstance(name, str) or not isinstance(prompts, dict) or name not in prompts:
        raise RequestError(f"{path}: default_prompt_name {name!r} is not among the prompts.")
    return str(prompts[name] or "")


def _read_static(folder: pathlib.Path, modules: Mapping[str, pathlib.Path]) -> TextEncoder:
    root = modules.get("StaticEmbedding", folder)
    settings = read_object(root / "config.json", missing={})
    arrays = load_folder(root, _table, CONVERT)
    counts_unknown = arrays.pop("counts_unknown", None) is not None
    tokenizer = tokens.for_mean(_tokenizer(root))
    vocabulary = tokens.vocabulary(tokenizer, limit=None, width=WIDTH, where=str(root))
    count, features = arrays["table/embedding"].shape
    _check_tokenizer(root, tokenizer, count)
    options = {
        "vocabulary": count,
        "features": features,
        "unknown": -1 if counts_unknown else vocabulary.unknown,
        "normalise": "Normalize" in modules if modules else settings.get("normalize") is True,
    }
    function, _ = _function("static", options)
    parameters = {n: jax.numpy.asarray(x) for n, x in arrays.items()}
    return TextEncoder(
        name=folder.resolve().name,
        kind="static",
        options=options,
        width=features,
        model=FrozenModel(function, parameters, {}),
        tokenizer=tokenizer,
        max_tokens=None,
        prompt=_prompt(folder),
        licence=read_licence(folder),
    )


def _table(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the vectors of all tokens, each times its weight.

    model2vec leaves unknown tokens out of the mean. sentence-transformers, which names its tensor
    otherwise, counts them.
    """
    if "mapping" in tensors:
        raise RequestError("its vocabulary is quantised (tensor mapping), which is not supported")
    name = "embedding.weight" if "embedding.weight" in tensors else "embeddings"
    table = np.asarray(tensors.get(name, ()), np.float32)
    if table.ndim != 2 or not table.size:
        raise RequestError(f"it has no tensor embeddings (tokens, features); {AGAIN}")
    if "weights" in tensors:
        weights = np.asarray(tensors["weights"], np.float32)
        if weights.shape != (len(table),):
            raise RequestError(f"its tensor weights has shape {weights.shape}, not ({len(table)},)")
        table = table * weights[:, None]
    native = {"counts_unknown": np.ones(())} if name == "embedding.weight" else {}
    return {"table/embedding": table, **native}


def _function(kind: str, options: Mapping[str, Any]) -> tuple[Functional, dict[str, Any]]:
    """Return a model of texts as a function, and the shapes of its parameters."""
    function, shapes, _ = function_of(kind, (WIDTH,), options)
    return function, shapes


def _pooling(folder: pathlib.Path) -> str:
    path = folder / "config.json"
    settings = read_object(path)
    if settings.get("include_prompt", True) is not True:
        raise RequestError(f"{path}: include_prompt false is not supported; {REMEDY}.")
    prefix = "pooling_mode_"
    old = [key for key, value in settings.items() if key.startswith(prefix) and value is True]
    modes = settings.get("pooling_mode", [key.removeprefix(prefix) for key in old])
    modes = modes if isinstance(modes, list) else [modes]
    names = [str(mode).removesuffix("_tokens").removesuffix("_token") for mode in modes]
    if len(names) != 1 or names[0] not in bert.POOLINGS:
        listed = ", ".join(names) or "None"
        raise RequestError(f"{path}: the pooling {listed} is not supported; {REMEDY}.")
    return names[0]


def _dense(folder: pathlib.Path, width: int) -> dict[str, np.ndarray]:
    path = folder / "config.json"
    settings = read_object(path)
    activation = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    if activation != "torch.nn.modules.linear.Identity":
        raise RequestError(
            f"{path}: activation_function {activation!r} is not supported, only Identity; {REMEDY}."
        )
    for field in ("module_input_name", "module_output_name"):
        if settings.get(field) not in (None, "sentence_embedding"):
            raise RequestError(f"{path}: {field} {settings[field]!r} is not supported; {REMEDY}.")

    def layer(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if "linear.weight" not in tensors:
            raise RequestError(f"it has no tensor linear.weight; {AGAIN}")
        weight = np.asarray(tensors["linear.weight"], np.float32)
        if weight.ndim != 2 or weight.shape[1] != width:
            raise RequestError(
                f"its tensor linear.weight has shape {weight.shape}, expected (any, {width})"
            )
        bias = np.asarray(tensors.get("linear.bias", np.zeros(len(weight))), np.float32)
        if bias.shape != (len(weight),):
            raise RequestError(
                f"its tensor linear.bias has shape {bias.shape}, expected ({len(weight)},)"
            )
        return {"embed/kernel": np.ascontiguousarray(weight.T), "embed/bias": bias}

    return load_folder(folder, layer, CONVERT)


def _tokenizer(folder: pathlib.Path) -> str:
    path = folder / "tokenizer.json"
    missing = (
        f"{folder} has no tokenizer.json; write it with AutoTokenizer.from_pretrained(...)"
        ".save_pretrained(FOLDER)."
    )
    return tokens.read_tokenizer(path, missing, f"{path} is not UTF-8.")


def _check_tokenizer(folder: pathlib.Path, tokenizer: str, rows: int) -> None:
    path = folder / "tokenizer.json"
    vocabulary = tokens.vocabulary(tokenizer, limit=None, width=WIDTH, where=str(path))
    if vocabulary.size > rows:
        raise RequestError(
            f"{path} has {vocabulary.size:,} tokens and the model {rows:,} rows: it belongs to "
            "another model."
        )
