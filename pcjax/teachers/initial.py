"""A text student's tokenizer and initial weights, from the teacher where it has them."""

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from pcjax import _io
from pcjax._checks import RequestError
from pcjax.config import Config
from pcjax.data import Dataset, Examples, tokens
from pcjax.data.texts import in_memory
from pcjax.data.tokens import Tokens, Vocabulary
from pcjax.display import Display
from pcjax.teachers.cache import cached_features
from pcjax.teachers.pretrained import check_pretrained, pretrained
from pcjax.teachers.sentence_transformers import TextEncoder
from pcjax.teachers.sources import find_text_encoder
from pcjax.training.embedding import FrozenModel, embed

SIF = 1e-3  # the smooth inverse frequency's constant, for frequencies counted in the texts


def student_vocabulary(config: Config, dataset: Dataset) -> Vocabulary:
    """Return the student's tokenizer: that of data.tokenizer, or the teacher's.

    Args:
      config: the student, the teacher and data.tokenizer.
      dataset: texts; the training texts decide which tokens are kept where student.vocabulary
        asks for fewer.
    """
    section, student = config.data, config.student
    options: dict[str, Any] = dict(student.options)
    encoder = find_text_encoder(config.teacher.source)
    if section.tokenizer is not None:
        where = f"{section.tokenizer} (data.tokenizer)"
        tokenizer = tokens.read_tokenizer(
            pathlib.Path(section.tokenizer),
            f"{where} is no file of a tokenizer; give a tokenizer.json.",
            f"{where} is not UTF-8; give a tokenizer.json.",
        )
    elif encoder is not None:
        where, tokenizer = f"the tokenizer of {encoder.name}", encoder.tokenizer
    else:
        raise RequestError(
            "A model of texts needs a tokenizer: give --data.tokenizer tokenizer.json, or a "
            "teacher.source that has one, such as minilm."
        )
    width, size = section.max_tokens, options.get("vocabulary")
    if student.name != "static":
        if size is not None:
            raise RequestError(
                f"student.vocabulary={size} is for a static student: the tokenizer decides it for "
                f"{student.name}; leave it out."
            )
        limit = int(options.get("positions", 512))
        if encoder is not None and encoder.max_tokens is not None:
            limit = min(limit, encoder.max_tokens)
        return tokens.vocabulary(tokenizer, limit=limit, width=min(width, limit), where=where)
    tokens.vocabulary(tokenizer, limit=None, width=width, where=where)  # refuses what is none
    tokenizer = tokens.for_mean(tokenizer)
    if size is not None:
        texts = tokens.texts_of(dataset.train)
        kept = map(texts.text, dataset.train.rows.tolist())
        tokenizer = tokens.pruned(tokenizer, kept, int(size))
    return tokens.vocabulary(tokenizer, limit=None, width=width, where=where)


def initialised_by_teacher(
    student: FrozenModel, config: Config, dataset: Dataset, display: Display
) -> FrozenModel:
    """Return a student with the initial weights that the config names.

    A student of images may begin with a pretrained model, and one of texts with its teacher. A
    static student gets the teacher's vector of every token, its principal components, weighted by
    smooth inverse frequency. A bert student gets layers and embeddings of the same shape.
    """
    if config.is_pretrained:
        return pretrained(student, config.initial, config.student, dataset.train.shape)
    encoder = find_text_encoder(config.teacher.source)
    if encoder is None or config.initial == "random" or dataset.vocabulary is None:
        return student
    if config.student.name == "static":
        vectors = token_vectors(encoder, dataset.vocabulary, display)
        width = student.parameters["table/embedding"].shape[1]
        table = principal_components(vectors, width) * weights(dataset)[:, None]
        if dataset.vocabulary.unknown >= 0:
            table[dataset.vocabulary.unknown] = 0
        arrays = {"table/embedding": table}
    elif config.student.name == "bert":
        arrays = copied_layers(student, encoder, config, dataset.vocabulary)
    else:
        return student
    arrays = {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}
    return student._replace(parameters={**student.parameters, **arrays})


def token_vectors(encoder: TextEncoder, vocabulary: Vocabulary, display: Display) -> np.ndarray:
    """Return the teacher's vector of every token alone, between its special tokens."""
    own = tokens.load_tokenizer(encoder.tokenizer, encoder.name)
    own.no_truncation()
    own.no_padding()
    of_student = tokens.load_tokenizer(vocabulary.tokenizer, "the student's tokenizer")
    names = {number: name for name, number in of_student.get_vocab(with_added_tokens=True).items()}
    special = own.encode("").ids
    first, last = special[:1], special[1:]
    same = own.get_vocab(with_added_tokens=True)
    rows = []
    for number in range(vocabulary.size):
        name = names.get(number, "")
        inner = [same[name]] if name in same else own.encode(name, add_special_tokens=False).ids
        rows.append([*first, *inner, *last])
    ends = np.cumsum([len(row) for row in rows])
    ids = np.concatenate([np.array(row, np.int32) for row in rows])
    limit = encoder.max_tokens or 512
    read = Vocabulary(encoder.tokenizer, len(same), -1, limit, limit)
    store = Tokens(in_memory(()), ids, ends, read)  # the texts themselves are not needed
    manifest = {
        "name": "tokens",
        "teacher": encoder.model.digest,
        **encoder.settings(),
        "tokens": _io.array_digest(ids),
        "ends": _io.array_digest(ends),
    }
    examples = Examples(store, np.arange(len(rows)))
    model, plain = encoder.unnormalised(), (np.zeros(1), np.ones(1))

    def compute(part: Examples) -> np.ndarray:
        return embed(model, part, plain, 512).features

    return np.nan_to_num(cached_features(compute, encoder.width, examples, manifest, display))


def principal_components(vectors: np.ndarray, width: int) -> np.ndarray:
    """Return the first components; columns beyond the vectors' own are small and random."""
    from sklearn.decomposition import PCA  # loads much

    most = min(width, *vectors.shape)
    components = PCA(most, svd_solver="full").fit_transform(vectors).astype(np.float32)
    random = np.random.Generator(np.random.PCG64(0))
    scale = 0.01 * float(components.std())
    more = scale * random.standard_normal((len(vectors), width - most), np.float32)
    return np.concatenate([components, more], axis=1)


def weights(dataset: Dataset) -> np.ndarray:
    """Return the smooth inverse frequency of every token in the training texts."""
    store: Any = dataset.train.store
    size = dataset.vocabulary.size
    counts = np.bincount(store.ids, minlength=size).astype(np.float32)[:size]
    share = (counts + 1) / (counts.sum() + size)
    return SIF / (SIF + share)


def check_initial(student: FrozenModel, config: Config, dataset: Dataset) -> None:
    """Refuse initial weights that the teacher or file does not have; nothing is computed."""
    if config.is_pretrained:
        check_pretrained(student, config.initial, config.student, dataset.train.shape)
        return
    encoder = find_text_encoder(config.teacher.source)
    if ":" in config.initial and (encoder is None or config.student.name != "bert"):
        raise RequestError(
            f"initial={config.initial!r} names layers, which only a bert student takes from a "
            "teacher of texts that is a model; leave it out."
        )
    if encoder is not None and config.initial != "random" and config.student.name == "bert":
        chosen_layers(student, encoder, config)


def chosen_layers(student: FrozenModel, encoder: TextEncoder, config: Config) -> list[int]:
    """Return the teacher's layer with which each layer of a bert student begins."""
    if encoder.kind != "bert":
        raise RequestError(f"{encoder.name} has no layers to copy; give --initial random.")
    count = 1 + max(int(name.split("/")[1]) for name in student.parameters if "layers/" in name)
    teachers = int(encoder.options["layers"])
    _, _, named = config.initial.partition(":")
    if not named:  # evenly spaced, the last one included
        return [max(0, ((number + 1) * teachers) // count - 1) for number in range(count)]
    layers = [int(number) for number in named.split(",")]
    if len(layers) != count or max(layers) >= teachers:
        raise RequestError(
            f"initial={config.initial!r} names {len(layers)} layers of {teachers}, and the "
            f"student has {count}; name one for each, counted from 0."
        )
    return layers


def copied_layers(
    student: FrozenModel, encoder: TextEncoder, config: Config, vocabulary: Vocabulary
) -> dict[str, np.ndarray]:
    """Return the teacher's arrays that a bert student begins with; others stay random."""
    layers = chosen_layers(student, encoder, config)
    same_tokens = vocabulary.tokenizer == encoder.tokenizer
    arrays = {}
    for name, array in student.parameters.items():
        parts = name.split("/")
        if parts[0] == "layers":
            parts[1] = str(layers[int(parts[1])])
        source = encoder.model.parameters.get("/".join(parts))
        if parts[0] == "words" and not same_tokens:
            continue
        if source is not None and source.shape == array.shape:
            arrays[name] = np.asarray(source)
    return arrays
