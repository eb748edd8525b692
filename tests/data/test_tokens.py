"""Texts as tokens: the ids are those of the package tokenizers, and batches lose no text."""

import collections
import json

import numpy as np
import pytest

from pcjax._checks import RequestError
from pcjax.data import Sampling, load, tokens, training_batches
from pcjax.data.texts import in_memory

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from small_texts import (  # noqa: E402
    LAST,
    SENTENCES,
    SPECIAL,
    SPELLING,
    UNKNOWN,
    VOCABULARY,
    numbered,
    uncut,
    wordpiece,
)

WORDPIECE = wordpiece()


def vocabulary(tokenizer=WORDPIECE, limit=8, width=6):
    return tokens.vocabulary(tokenizer, limit=limit, width=width, where="it")


def own_ids(text, limit, tokenizer=WORDPIECE):
    """Return the ids of a text; the last token stays where the text is cut."""
    ids = uncut(tokenizer).encode(text).ids
    return ids if len(ids) <= limit else [*ids[: limit - 1], LAST]


def lists(store):
    return [each.tolist() for each in np.split(store.ids, store.ends)[:-1]]


@pytest.fixture
def data(tmp_path):
    (tmp_path / "x.txt").write_text("\n".join([*SENTENCES, *(f"cat {n}" for n in range(12))]))
    return load(f"text:{tmp_path / 'x.txt'}")


@pytest.mark.parametrize("limit", [4, 8, 100])
def test_the_ids_are_those_of_tokenizers(limit, data):
    made = tokens.tokenised(data, vocabulary(limit=limit, width=limit))
    for name, part in made.parts.items():
        before = data.parts[name]
        assert np.array_equal(part.rows, before.rows)
        store = part.store
        texts = [before.store.text(row) for row in range(len(before.store))]
        assert lists(store) == [own_ids(text, limit) for text in texts]
        assert store.lengths.tolist() == [len(own_ids(text, limit)) for text in texts]
        assert part.dtype == part.input_dtype == np.int32
        for row, ids in zip(part.rows, part.take(np.arange(len(part))), strict=True):
            expected = own_ids(texts[row], limit)
            assert ids[ids >= 0].tolist() == expected[: part.shape[0]]
    assert made.train.store is made.test.store  # tokenised once
    assert made.fingerprint != data.fingerprint


def test_texts_that_are_tokenised_again_come_from_the_texts(data):
    narrow = tokens.tokenised(data, vocabulary(limit=4, width=4))
    wide = tokens.tokenised(narrow, vocabulary(limit=16, width=16))
    expected = tokens.tokenised(data, vocabulary(limit=16, width=16))
    assert np.array_equal(wide.train.store.ids, expected.train.store.ids)
    assert wide.fingerprint == expected.fingerprint != narrow.fingerprint


def test_other_examples_are_no_texts():
    with pytest.raises(RequestError, match=r"\(8, 8, 1\) and are no texts; give data.source text"):
        tokens.tokenised(load("digits"), vocabulary())


def test_without_texts_there_are_no_tokens():
    made = tokens.tokens_of([], vocabulary())
    assert (len(made), made.ids.tolist(), made.texts.total) == (0, [], 0)
    assert made.padded(np.zeros(0, np.int64), 8).shape == (0, 8)


@pytest.mark.parametrize("width", [1, 5, 40])
def test_rows_are_cut_and_padded(width):
    store = tokens.tokens_of(["", *SENTENCES], vocabulary(limit=None, width=6))
    rows = np.array([3, 0, 0, 8, 1])
    expected = np.full((len(rows), width), -1)
    for line, row in zip(expected, rows, strict=True):
        for position, number in enumerate(lists(store)[row][:width]):
            line[position] = number
    made = store.padded(rows, width)
    assert made.dtype == np.int32
    assert np.array_equal(made, expected)


def random_tokens(rng, lengths, limit=None):
    """Return tokens without a tokenizer."""
    ids = rng.integers(0, 50, sum(lengths)).astype(np.int32)
    texts = in_memory(["x"] * len(lengths))
    return tokens.Tokens(texts, ids, np.cumsum(lengths), vocabulary(limit=limit))


@pytest.mark.parametrize("most", [1, 7, 64, 1000, 100_000])
@pytest.mark.parametrize("multiple", [1, 8])
def test_batches_of_similar_length_have_every_text_once(most, multiple, rng):
    lengths = np.concatenate([rng.integers(0, 60, 80), [0, 512, 513, 700, 1025]])
    rng.shuffle(lengths)
    store = random_tokens(rng, lengths)
    rows = rng.permutation(len(lengths))[:70]
    visited = []
    for positions, batch in tokens.length_batches(store, rows, most, multiple):
        visited += positions.tolist()
        count, width = batch.shape
        assert count % multiple == 0
        assert 0 < len(positions) <= count
        assert batch.size <= most or count <= multiple
        longest = int(lengths[rows[positions]].max())
        assert longest <= width
        assert width <= max(8, 2 * longest)  # little of it is padding
        assert np.array_equal(batch[: len(positions)], store.padded(rows[positions], width))
        assert (batch[len(positions) :] == batch[len(positions) - 1]).all()
    assert sorted(visited) == [*range(len(rows))]


def test_no_batch_is_wider_than_a_model_reads(rng):
    lengths = rng.integers(1, 21, 30)
    lengths[:3] = 17, 20, 20
    store = random_tokens(rng, lengths, limit=20)
    batches = [*tokens.length_batches(store, np.arange(30), 1000)]
    assert max(batch.shape[1] for _, batch in batches) == 20
    assert sorted(np.concatenate([chosen for chosen, _ in batches])) == [*range(30)]


def test_lengths_are_rounded_up_to_a_few():
    made = [tokens.rounded(length) for length in range(5000)]
    assert all(length <= shape for length, shape in enumerate(made))
    assert made == sorted(made)
    assert all(tokens.rounded(shape) == shape for shape in made)
    assert (made[0], made[512], made[513], made[1025]) == (8, 512, 1024, 1536)
    assert len({*made}) == 21


def test_training_batches_are_no_wider_than_the_longest_text_needs(tmp_path):
    (tmp_path / "train.txt").write_text("the cat\nthe dog sat\na a a a a a a")
    (tmp_path / "validation.txt").write_text("the dog " * 50)
    (tmp_path / "test.txt").write_text("the cat " * 60)
    data = load(f"text:{tmp_path}")
    # The longest one has 9 tokens.
    for width, expected in ((100, 16), (16, 16), (12, 12), (5, 5)):
        made = tokens.tokenised(data, vocabulary(limit=100, width=width))
        assert made.train.shape == made.test.shape == (expected,)
        assert made.vocabulary.width == made.train.store.vocabulary.width == expected
    # All tokens of other texts stay, for batches of their own.
    assert made.test.store.lengths.tolist() == [100]


def test_training_batches_are_ids(data):
    made = tokens.tokenised(data, vocabulary(limit=8, width=8)).train
    batch = next(training_batches(made, Sampling(batch=4)))
    assert batch["image"].dtype == np.int32
    assert batch["image"].shape == (4, 8)
    chosen = made.rows[batch["index"]]
    expected = [own_ids(made.store.texts.text(row), 8) for row in chosen.tolist()]
    assert [row[row >= 0].tolist() for row in batch["image"]] == expected


def test_a_prompt_and_lower_case_come_first():
    text = wordpiece(lowercase=False)
    plain = vocabulary(text, limit=50)
    changed = plain._replace(prompt="The Dog: ", lower=True)
    made = tokens.tokens_of(["The CAT", ""], changed)
    assert lists(made) == [uncut(text).encode(t).ids for t in ("the dog: the cat", "the dog: ")]
    assert UNKNOWN in lists(tokens.tokens_of(["The CAT"], plain))[0]
    assert changed.prepare("The CAT") == "the dog: the cat"
    digests = {plain.digest, changed.digest, plain._replace(lower=True).digest}
    digests |= {plain._replace(limit=49).digest, vocabulary(wordpiece(), limit=50).digest}
    assert len(digests) == 5


def test_a_vocabulary_knows_its_size_and_its_unknown_token():
    models = tokenizers.models
    bpe = models.BPE({"a": 0, "b": 1, "<unk>": 7}, [], unk_token="<unk>")  # noqa: S106
    unigram = models.Unigram([("<s>", 0.0), ("<unk>", -1.0), ("a", -2.0)], unk_id=1)
    sizes = {
        "bpe": (bpe, 8, 7),
        "no unknown": (models.BPE({"a": 0, "b": 1}, []), 2, -1),
        "unigram": (unigram, 3, 1),
        "word level": (models.WordLevel({"a": 0, "?": 1}, unk_token="?"), 2, 1),  # noqa: S106
    }
    for name, (model, size, unknown) in sizes.items():
        made = vocabulary(tokenizers.Tokenizer(model).to_str())
        assert (made.size, made.unknown) == (size, unknown), name
    made = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    made.add_special_tokens(["<s>", "</s>"])
    assert vocabulary(made.to_str()).size == 3


def test_no_tokenizer_is_refused():
    for text in ("", "{}", "[]", WORDPIECE[:-20], WORDPIECE.replace("WordPiece", "Magic")):
        with pytest.raises(RequestError, match=r"^it is not a tokenizer of `tokenizers` \(") as e:
            vocabulary(text)
        assert "\n" not in str(e.value)
    empty = tokenizers.Tokenizer(tokenizers.models.BPE({}, [])).to_str()
    with pytest.raises(RequestError, match=r"^it has no tokens"):
        vocabulary(empty)


def test_a_tokenizer_without_its_unknown_token_is_refused():
    """It would read known words, and fail at the first other one."""
    models, missing = tokenizers.models, {"unk_token": "[UNK]"}
    refused = {
        "has no unk_id": models.Unigram([("a", 0.0), ("<0x62>", 0.0)], byte_fallback=True),
        r"lacks its unknown token '\[UNK\]'": models.WordPiece({"a": 0}, **missing),
        r"lacks its unknown token '\?'": models.WordLevel({"a": 0}, unk_token="?"),  # noqa: S106
    }
    for reason, model in refused.items():
        made = tokenizers.Tokenizer(model)
        with pytest.raises(RequestError, match=rf"^it {reason} and cannot read unknown words; tr"):
            vocabulary(made.to_str())
    # The model does not look among added tokens.
    made = tokenizers.Tokenizer(models.WordPiece({"a": 0}, **missing))
    made.add_special_tokens(["[UNK]"])
    with pytest.raises(RequestError, match=r"^it lacks its unknown token"):
        vocabulary(made.to_str())
    with pytest.raises(RequestError, match=r"^the tokenizer lacks its unknown token"):
        tokens.pruned(made.to_str(), ["a"], 2)


def test_a_tokenizer_that_fails_is_refused():
    """BPE may name an unknown token that it lacks and never need it."""
    model = tokenizers.models.BPE({"a": 0}, [], unk_token="<unk>")  # noqa: S106
    made = vocabulary(tokenizers.Tokenizer(model).to_str())
    assert lists(tokens.tokens_of(["aa"], made)) == [[0, 0]]
    with pytest.raises(RequestError, match=r"cannot read the texts \(.*\); give another one$") as e:
        tokens.tokens_of(["ab"], made)
    assert "\n" not in str(e.value)


def test_ids_are_bounded():
    """A table has a row for every id up to the greatest."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, [])).to_str()

    def with_id(number):
        changed = json.loads(made)
        changed["model"]["vocab"]["b"] = number
        return vocabulary(json.dumps(changed))

    assert with_id(2**24 - 1).size == 2**24
    for number in (2**24, 2_000_000_000):
        with pytest.raises(RequestError, match=rf"^it numbers a token {number:,}; pcjax reads"):
            with_id(number)


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(RequestError, match=r"^texts\[1\] holds half of a surrogate pair; write it"):
        tokens.tokens_of(["\U0001f642", "a \ud83d"], vocabulary())


def test_a_tokenizer_for_a_mean_adds_and_cuts_nothing():
    loaded = tokenizers.Tokenizer.from_str(tokens.for_mean(WORDPIECE))
    for text in ("", *SENTENCES):
        expected = uncut(WORDPIECE).encode(text, add_special_tokens=False).ids
        assert loaded.encode(text).ids == expected


SPELLER = tokens.for_mean(wordpiece(numbered(SPELLING)))
COUNTED = [*SENTENCES, "the mat"]


def test_frequent_tokens_are_kept_and_numbered_in_their_order():
    size = len(SPECIAL) + 2 * 26 + 2 + 4  # two are punctuation marks
    made = tokenizers.Tokenizer.from_str(tokens.pruned(SPELLER, COUNTED, size))
    kept = made.get_vocab()
    assert sorted(kept.values()) == [*range(size)]
    assert sorted(kept, key=kept.get) == [token for token in SPELLING if token in kept]
    single = {token for token in SPELLING if len(token.removeprefix("##")) == 1}
    assert {*SPECIAL} | single < {*kept}
    counts = collections.Counter(
        token for text in COUNTED for token in uncut(SPELLER).encode(text).tokens
    )
    words = {token: counts[token] for token in SPELLING if token not in {*SPECIAL} | single}
    chosen = {token for token in kept if token in words}
    assert len(chosen) == 4
    assert min(words[token] for token in chosen) >= max(
        count for token, count in words.items() if token not in chosen
    )
    assert "the" in chosen
    assert chosen != {*[*words][:4]}  # their numbers alone do not decide


@pytest.mark.parametrize("more", [0, 3, 100])
def test_every_word_can_still_be_spelt(more):
    least = len(SPECIAL) + 2 * 26 + 2
    made = uncut(tokens.pruned(SPELLER, COUNTED, least + more))
    before = uncut(SPELLER)
    for text in (*SENTENCES, "quick brown foxes, 5 dogs sat", "[CLS] the [MASK]"):
        spelt = [each.tokens for each in (made.encode(text), before.encode(text))]
        assert spelt[0].count("[UNK]") == spelt[1].count("[UNK]")
        assert len({"".join(each).replace("##", "") for each in spelt}) == 1
        known = made.get_vocab()
        assert made.encode(text).ids == [known[token] for token in spelt[0]]
    if more == 100:
        assert json.loads(made.to_str())["model"] == json.loads(before.to_str())["model"]


def test_only_wordpiece_is_pruned():
    models = tokenizers.models
    for model in (
        models.BPE({"a": 0}, []),
        models.Unigram([("a", 0.0)]),
        models.WordLevel({"a": 0}, unk_token="a"),  # noqa: S106
    ):
        text = tokenizers.Tokenizer(model).to_str()
        kind = type(model).__name__
        with pytest.raises(
            RequestError, match=rf"student.vocabulary=5 needs a WordPiece .* is {kind}; leave it"
        ):
            tokens.pruned(text, ["a"], 5)


def test_a_vocabulary_that_could_not_spell_is_refused():
    least = len(SPECIAL) + 2 * 26 + 2
    with pytest.raises(
        RequestError, match=rf"student.vocabulary={least - 1} is below the {least} single .* raise"
    ):
        tokens.pruned(SPELLER, ["a"], least - 1)


def test_the_shared_tokenizer_is_what_these_tests_need():
    assert uncut(WORDPIECE).encode("cats").tokens == ["[CLS]", "cat", "##s", "[SEP]"]
    assert vocabulary().size == len(VOCABULARY)
    assert tokenizers.Tokenizer.from_str(WORDPIECE).encode("cats " * 9).ids[4:] == [0] * 5
