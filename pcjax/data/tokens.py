"""Texts as the tokens that a model reads."""

import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pcjax._checks import RequestError
from pcjax.data.examples import Dataset, Examples, digest, hashed
from pcjax.data.texts import Texts, in_memory
from pcjax.models.text import PADDING

CHUNK = 16_384  # texts that are tokenised at a time
MAX_TOKENIZER_BYTES = 2**27
MAX_TOKENS = 2**24  # of a vocabulary, whose table has a row each
LENGTHS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # then multiples of 512


class Vocabulary(NamedTuple):
    """A tokenizer, and how much of a text a model reads.

    tokenizer: its JSON, as the package `tokenizers` writes it.
    size: the number of its tokens: one more than the greatest id.
    unknown: the token of unknown words; -1 where there is none.
    limit: longer texts are cut to so many tokens; None: never.
    width: the length to which a batch of training texts is cut and padded.
    prompt: put before every text.
    lower: whether texts are put in lower case first, the prompt included.
    """

    tokenizer: str
    size: int
    unknown: int
    limit: int | None
    width: int
    prompt: str = ""
    lower: bool = False

    @property
    def digest(self) -> str:
        """Hash what decides the tokens of a text."""
        rest = f"{self.limit} {self.prompt!r} {self.lower}"
        return digest([self.tokenizer.encode(), rest.encode()])

    def prepare(self, text: str) -> str:
        """Return a text as the tokenizer gets it."""
        prompted = self.prompt + text
        return prompted.lower() if self.lower else prompted


def vocabulary(tokenizer: str, *, limit: int | None, width: int, where: str) -> Vocabulary:
    """Check a tokenizer; return it with what a model needs to know of it.

    Args:
      tokenizer: the JSON of a tokenizer.
      limit: see `Vocabulary`.
      width: see `Vocabulary`.
      where: where the tokenizer comes from, for the error.
    """
    loaded = load_tokenizer(tokenizer, where)
    ids = loaded.get_vocab(with_added_tokens=True)
    if not ids:
        raise RequestError(f"{where} has no tokens")
    size = max(ids.values()) + 1
    if size > MAX_TOKENS:
        raise RequestError(
            f"{where} numbers a token {size - 1:,}; pcjax reads ids below {MAX_TOKENS:,}: give "
            "another tokenizer"
        )
    _require_unknown(json.loads(tokenizer)["model"], where)
    name = getattr(loaded.model, "unk_token", None)
    if name is None:  # Unigram knows the position only
        position = json.loads(tokenizer).get("model", {}).get("unk_id")
        unknown = -1 if position is None else int(position)
    else:
        unknown = ids.get(name, -1)
    return Vocabulary(tokenizer, size, unknown, limit, width)


def _require_unknown(model: dict[str, Any], where: str) -> None:
    """Refuse a tokenizer that cannot read unknown words, since it lacks the token for them."""
    kind, name = model.get("type"), model.get("unk_token")
    if kind == "Unigram" and model.get("unk_id") is None:  # needed with byte_fallback, too
        missing = "has no unk_id"
    elif kind in ("WordPiece", "WordLevel") and name not in model.get("vocab", {}):
        missing = f"lacks its unknown token {name!r}"
    else:
        return
    raise RequestError(
        f"{where} {missing} and cannot read unknown words; train it with an unknown token, or give "
        "another tokenizer"
    )


def read_tokenizer(path: pathlib.Path, missing: str, not_utf8: str) -> str:
    """Return the JSON of a tokenizer's file.

    Args:
      path: the file.
      missing: the error where there is no such file.
      not_utf8: the error where it is none in UTF-8.
    """
    if not path.is_file() or path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise RequestError(missing)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeError as error:
        raise RequestError(not_utf8) from error


def load_tokenizer(tokenizer: str, where: str) -> Any:
    """Parse the JSON of a tokenizer."""
    try:
        import tokenizers
    except ImportError as error:
        raise RequestError(
            'texts need the package tokenizers: `pip install "pcjax[text]"`'
        ) from error
    try:
        return tokenizers.Tokenizer.from_str(tokenizer)
    except Exception as error:  # the package raises Exception itself
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"{where} is not a tokenizer of `tokenizers` ({reason})") from error


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """Texts as lists of token ids.

    texts: the texts.
    ids: the tokens of all texts, one after the other.
    ends: (n,) where each text's tokens end.
    vocabulary: the tokenizer.
    """

    texts: Texts
    ids: np.ndarray
    ends: np.ndarray
    vocabulary: Vocabulary

    @property
    def dtype(self) -> np.dtype:
        """The dtype of tokens."""
        return np.dtype(np.int32)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example of a training batch."""
        return (self.vocabulary.width,)

    @property
    def known_labels(self) -> np.ndarray | None:
        """All labels."""
        return self.texts.known_labels

    @property
    def fingerprint(self) -> str:
        """A hash of the texts and of the tokenizer."""
        return f"{self.texts.fingerprint} {self.vocabulary.digest} {self.vocabulary.width}"

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """The number of tokens of every text."""
        return np.diff(self.ends, prepend=0)

    def __len__(self) -> int:
        return len(self.ends)

    def labels(self) -> np.ndarray | None:
        """Return all labels."""
        return self.texts.known_labels

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the tokens of these texts, cut and padded to one width, and the labels."""
        labels = self.texts.known_labels
        return self.padded(rows, self.vocabulary.width), None if labels is None else labels[rows]

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """Hash the tokens of each of these texts."""
        ends = self.ends[rows]
        bounds = zip((ends - self.lengths[rows]).tolist(), ends.tolist(), strict=True)
        return hashed((self.ids[start:end].tobytes(),) for start, end in bounds)

    def padded(self, rows: np.ndarray, width: int) -> np.ndarray:
        """Return the first tokens of these texts, padded with -1."""
        lengths = np.minimum(self.lengths[rows], width)
        starts = self.ends[rows] - self.lengths[rows]
        positions = np.arange(width)
        inside = positions < lengths[:, None]
        result = np.full((len(rows), width), PADDING, np.int32)
        result[inside] = self.ids[(starts[:, None] + positions)[inside]]
        return result


def encode(tokenizer: Any, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Tokenise texts; return all ids one after the other, and where each text's end."""
    tokenizer.no_padding()
    iterator = iter(texts)
    ids, lengths = bytearray(), [np.zeros(0, np.int64)]
    while chunk := list(itertools.islice(iterator, CHUNK)):
        try:
            encoded = [each.ids for each in tokenizer.encode_batch_fast(chunk)]
        except Exception as error:  # the package raises Exception itself
            reason = " ".join(str(error).split())[:200]
            raise RequestError(
                f"the tokenizer cannot read the texts ({reason}); give another one"
            ) from error
        lengths.append(np.array([len(each) for each in encoded], np.int64))
        ids += np.fromiter(itertools.chain.from_iterable(encoded), np.int32).tobytes()
    # One growing buffer: joined pieces would be twice in memory.
    return np.frombuffer(ids, np.int32), np.cumsum(np.concatenate(lengths))


@functools.lru_cache(maxsize=4)  # parsing takes as long as a thousand short texts
def limited(vocabulary: Vocabulary) -> Any:
    """Return the tokenizer of a vocabulary, which cuts texts to its limit."""
    tokenizer = load_tokenizer(vocabulary.tokenizer, "the tokenizer")
    if vocabulary.limit is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(vocabulary.limit)
    return tokenizer


def tokenised(data: Dataset, vocabulary: Vocabulary) -> Dataset:
    """Return a data set of texts as a model with this vocabulary reads it.

    Training batches are no wider than the longest training text needs.
    """
    texts = {name: texts_of(part) for name, part in data.parts.items()}
    # Several parts may share a store.
    stores = {id(each): _tokens(each, vocabulary) for each in set(texts.values())}
    lengths = stores[id(texts["train"])].lengths[data.train.rows]
    width = min(vocabulary.width, rounded(int(lengths.max(initial=1))))
    vocabulary = vocabulary._replace(width=width)
    stores = {key: dataclasses.replace(s, vocabulary=vocabulary) for key, s in stores.items()}
    parts = {
        name: dataclasses.replace(part, store=stores[id(texts[name])])
        for name, part in data.parts.items()
    }
    return dataclasses.replace(data, **parts, vocabulary=vocabulary)


def tokens_of(texts: Sequence[str], vocabulary: Vocabulary) -> Tokens:
    """Tokenise a few texts."""
    return _tokens(in_memory(texts), vocabulary)


def _tokens(texts: Texts, vocabulary: Vocabulary) -> Tokens:
    prepared = (vocabulary.prepare(texts.text(row)) for row in range(len(texts)))
    return Tokens(texts, *encode(limited(vocabulary), prepared), vocabulary)


def texts_of(examples: Examples) -> Texts:
    """Return the texts of examples; refuse others."""
    store: Any = examples.store
    store = store.texts if isinstance(store, Tokens) else store
    if not isinstance(store, Texts):
        raise RequestError(
            f"the examples have shape {examples.shape} and are no texts; give data.source text:PATH"
        )
    return store


def rounded(length: int) -> int:
    """Return the smallest of a few lengths that is at least this one.

    >>> rounded(3), rounded(33), rounded(513)
    (8, 48, 1024)
    """
    larger = (limit for limit in LENGTHS if limit >= length)
    return next(larger, -(-length // LENGTHS[-1]) * LENGTHS[-1])


def length_batches(
    tokens: Tokens, rows: np.ndarray, most: int, multiple: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield positions in `rows`, those of similar length together, and their padded tokens.

    The last batch of a length repeats its last text.

    Args:
      tokens: the tokenised texts.
      rows: which of them.
      most: the largest number of tokens of a batch, padding included.
      multiple: the number of texts of a batch is a multiple of it.
    """
    lengths, limit = tokens.lengths[rows], tokens.vocabulary.limit
    padded = np.array([rounded(n) for n in lengths.tolist()], np.int64)
    if limit is not None:  # a model may read fewer tokens than the rounded length
        padded = np.minimum(padded, limit)
    for width in np.unique(padded).tolist():
        positions = np.flatnonzero(padded == width)
        # A few texts need no full batch; powers of two keep the shapes few.
        count = min(
            2 ** int(np.log2(max(1, most // width))), 1 << (len(positions) - 1).bit_length()
        )
        count = -(-count // multiple) * multiple
        for start in range(0, len(positions), count):
            chosen = positions[start : start + count]
            filled = np.pad(chosen, (0, count - len(chosen)), mode="edge")
            yield chosen, tokens.padded(rows[filled], width)


def for_mean(tokenizer: str) -> str:
    """Return a tokenizer that adds no special tokens and cuts nothing, for a mean of tokens."""
    return json.dumps(
        _parsed(tokenizer) | {"post_processor": None, "truncation": None, "padding": None}
    )


def pruned(tokenizer: str, texts: Iterable[str], size: int) -> str:
    """Keep the tokens that are most frequent in texts; number them anew, in their old order.

    Special tokens and single characters stay, so that every word can still be spelt.

    Args:
      tokenizer: the JSON of a tokenizer.
      texts: where the tokens are counted.
      size: how many tokens are kept.
    """
    parsed = _parsed(tokenizer)
    model = parsed["model"]
    if model.get("type") != "WordPiece":
        raise RequestError(
            f"student.vocabulary={size} needs a WordPiece tokenizer, and this is "
            f"{model.get('type')}; leave it out"
        )
    _require_unknown(model, "the tokenizer")
    vocabulary: dict[str, int] = model["vocab"]
    ids, _ = encode(load_tokenizer(tokenizer, "the tokenizer"), texts)
    counts = np.bincount(ids, minlength=max(vocabulary.values()) + 1)
    special = {added["content"] for added in parsed.get("added_tokens", ())} | {model["unk_token"]}
    prefix = model.get("continuing_subword_prefix", "##")

    def is_kept(token: str) -> bool:
        return token in special or len(token.removeprefix(prefix)) == 1

    ordered = sorted(vocabulary, key=lambda token: (not is_kept(token), -counts[vocabulary[token]]))
    least = sum(map(is_kept, vocabulary))
    if size < least:
        raise RequestError(
            f"student.vocabulary={size} is below the {least} single characters and special tokens "
            "of this tokenizer; raise it"
        )
    kept = sorted(ordered[:size], key=vocabulary.__getitem__)
    model["vocab"] = {token: number for number, token in enumerate(kept)}
    for added in parsed.get("added_tokens", ()):
        added["id"] = model["vocab"].get(added["content"], added["id"])
    return json.dumps(parsed)


def _parsed(tokenizer: str) -> dict[str, Any]:
    load_tokenizer(tokenizer, "the tokenizer")
    return json.loads(tokenizer)
