"""The teacher's vector of every token of a student, from which its table is made."""

import numpy as np
import pytest

from pcjax.data import tokens
from pcjax.display import Display
from pcjax.teachers.initial import token_vectors
from pcjax.teachers.sentence_transformers import read_encoder

pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from small_texts import SENTENCES, SPELLING, numbered, oracle, uncut, wordpiece, write_bert


def test_every_token_has_the_vector_of_its_text(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    encoder = read_encoder(write_bert(tmp_path / "teacher"))
    speller = tokens.for_mean(wordpiece(numbered(SPELLING)))
    kept = tokens.pruned(speller, SENTENCES, 64)  # other numbers than the teacher's
    vocabulary = tokens.vocabulary(kept, limit=None, width=8, where="it")
    vectors = token_vectors(encoder, vocabulary, Display(quiet=True))
    names = sorted(uncut(kept).get_vocab().items(), key=lambda item: item[1])
    assert len(vectors) == len(names) == 64
    words = [(name, number) for name, number in names if not name.startswith(("##", "["))]
    expected = oracle(texts=[name for name, _ in words])
    made = vectors[[number for _, number in words]]
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)
