"""Vectors in place of a model: by text or in the order of the source, and never of another text."""

import re

import numpy as np
import pytest

from pcjax._checks import RequestError
from pcjax.data import load, tokens
from pcjax.teachers import vectors
from pcjax.teachers.sources import find_teacher

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

TEXTS = [f"text {n}" for n in range(20)]
ROWS = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)


@pytest.fixture
def data(tmp_path):
    # Some texts are blank or come again: every line has a row in a .npy file.
    lines = [*TEXTS[:5], "", TEXTS[2], *TEXTS[5:], TEXTS[0]]
    (tmp_path / "x.txt").write_text("\n".join(lines))
    return load(f"text:{tmp_path / 'x.txt'}")


def read(path, data):
    kind, name = find_teacher(f"vectors:{path}")
    return kind.read(name, data)


def is_correct(features, data):
    """Return whether every example has the vector of its text."""
    return all(
        rows.dtype == np.float32
        and np.array_equal(rows, ROWS[[TEXTS.index(text) for text in data.parts[part].take(every)]])
        for part, rows in features.items()
        for every in [np.arange(len(data.parts[part]))]
    )


def write(path, texts, embeddings, kind=None, text_type=None):
    table = pyarrow.table(
        {
            "id": pyarrow.array(range(len(texts))),
            "embedding": pyarrow.array(embeddings, kind),
            "text": pyarrow.array(texts, text_type),
        }
    )
    parquet.write_table(table, path)


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.list_(pyarrow.float32()),
        pyarrow.list_(pyarrow.float64(), 3),
        pyarrow.large_list(pyarrow.float32()),
    ],
    ids=str,
)
def test_every_text_finds_its_vector(kind, data, tmp_path):
    order = np.random.default_rng(1).permutation(20)
    texts = ["another", *(TEXTS[n] for n in order), None, "text 100", "text"]
    rows = [[9.0, 9, 9], *ROWS[order].tolist(), *[[8.0, 8, 8]] * 3]
    write(tmp_path / "x.parquet", texts, rows, kind)
    features = read(tmp_path / "x.parquet", data)
    assert features.keys() == data.parts.keys()
    assert is_correct(features, data)


def test_texts_of_other_columns_types_are_found(data, tmp_path):
    kinds = (pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))
    for kind in kinds:
        write(tmp_path / "x.parquet", TEXTS, ROWS.tolist(), text_type=kind)
        assert is_correct(read(tmp_path / "x.parquet", data), data)


def test_tokens_find_the_vectors_of_their_texts(data, tmp_path):
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    from small_texts import wordpiece

    vocabulary = tokens.vocabulary(wordpiece(), limit=8, width=8, where="it")
    write(tmp_path / "x.parquet", TEXTS, ROWS.tolist())
    assert is_correct(read(tmp_path / "x.parquet", tokens.tokenised(data, vocabulary)), data)


def test_a_folder_of_files(data, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "CHUNK", 4)
    folder = tmp_path / "vectors"
    (folder / "more").mkdir(parents=True)
    write(folder / "2.parquet", TEXTS[:9], ROWS[:9].tolist())
    write(folder / "more/1.parquet", TEXTS[9:], ROWS[9:].tolist())
    write(folder / "empty.parquet", [], [], pyarrow.list_(pyarrow.float32()), pyarrow.string())
    (folder / "notes.txt").write_text("no vectors")
    assert is_correct(read(folder, data), data)
    write(folder / "3.parquet", ["another"], [[1.0] * 4])
    refused(
        folder, data, r"3\.parquet .* vectors of 4 numbers, others have 3; compute them with on"
    )


def test_rows_in_the_order_of_the_file(data, tmp_path):
    filler = np.full(3, 7, np.float32)  # of the blank line and of the texts that come again
    rows = np.concatenate([ROWS[:5], [filler, filler], ROWS[5:], [filler]])
    np.save(tmp_path / "x.npy", rows.astype(np.float64))
    assert is_correct(read(tmp_path / "x.npy", data), data)
    np.save(tmp_path / "x.npy", ROWS)
    refused(
        tmp_path / "x.npy",
        data,
        r"shape \(20, 3\), expected numbers of shape \(23, features\), one row a text of the "
        "source, blank and repeated ones included",
    )


def test_rows_in_the_order_of_a_folder(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "b.txt").write_text("\n".join([*TEXTS[4:9], TEXTS[12]]))
    (folder / "a.txt").write_text("\n".join([*TEXTS[:4], TEXTS[1]]))
    (folder / "validation.txt").write_text("\n".join(TEXTS[9:12]))
    (folder / "test.txt").write_text("\n".join(TEXTS[12:]))
    data = load(f"text:{folder}")
    filler = np.full((1, 3), 7, np.float32)
    # The training files by name, then validation, then test.
    np.save(tmp_path / "x.npy", np.concatenate([ROWS[:4], filler, ROWS[4:9], filler, ROWS[9:]]))
    features = read(tmp_path / "x.npy", data)
    assert [len(rows) for rows in features.values()] == [9, 3, 8]
    assert is_correct(features, data)


def refused(path, data, reason):
    with pytest.raises(RequestError, match=reason) as refusal:
        read(path, data)
    message = str(refusal.value)
    assert str(path) in message
    assert "teacher.source" in message
    assert "\n" not in message
    assert len(message) < 500


def with_row(position, row):
    rows = ROWS.tolist()
    rows[position] = row
    return rows


NAN = float("nan")
FAULTS = {
    "a missing text": (TEXTS[:-1], ROWS[:-1].tolist(), "no vector for 1 of 20 texts, such as"),
    "no rows": ([], [], "must hold (texts|lists of numbers), and it holds null"),
    "NaN": (TEXTS, with_row(5, [1, NAN, 2]), r"has NaN or infinite \w+ vectors; compute them anew"),
    "a null inside": (TEXTS, with_row(5, [1, None, 2]), "has NaN or infinite"),
    "an infinite number": (TEXTS, with_row(5, [1, 2, -np.inf]), "has NaN or infinite"),
    "no vector": (TEXTS, with_row(5, None), "every embedding must have the same length"),
    "an empty vector": (TEXTS, with_row(5, []), "every embedding must have the same length"),
    "empty vectors": (TEXTS, [[]] * 20, "(same length|must hold lists|has NaN)"),
    # All numbers together would fit.
    "other widths": (TEXTS, [[1.0] * (2 + 2 * (n % 2)) for n in range(20)], "the same length"),
    "single numbers": (TEXTS, [1.0] * 20, "'embedding' must hold lists of numbers, and it holds d"),
    "numbers as texts": ([*range(20)], ROWS.tolist(), "'text' must hold texts, and it holds int64"),
    "lists as texts": ([[t] for t in TEXTS], ROWS.tolist(), "'text' must hold texts, and it holds"),
    "texts as numbers": (TEXTS, [["a", "b"]] * 20, "cannot be read: could not convert string"),
    "lists of lists": (TEXTS, [[[1.0]]] * 20, "cannot be read: setting an array element"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused_in_one_line(fault, data, tmp_path):
    texts, rows, reason = FAULTS[fault]
    write(tmp_path / "x.parquet", texts, rows)
    refused(tmp_path / "x.parquet", data, reason)


def test_an_error_names_a_text_without_its_vector(data, tmp_path):
    write(tmp_path / "x.parquet", TEXTS[:7] + TEXTS[8:], np.delete(ROWS, 7, 0).tolist())
    refused(tmp_path / "x.parquet", data, r"'text 7'; compute the vectors of these texts\.")
    write(tmp_path / "x.parquet", ["a"], [[1.0]])
    refused(tmp_path / "x.parquet", data, "no vector for 20 of 20 texts")


def test_missing_columns_are_refused(data, tmp_path):
    path = tmp_path / "x.parquet"
    for columns, reason in (
        ({"text": TEXTS, "vector": ROWS.tolist()}, "no column 'embedding'; it has text, vector"),
        ({"embedding": ROWS.tolist()}, "no column 'text'; it has embedding"),
    ):
        parquet.write_table(pyarrow.table(columns), path)
        refused(path, data, reason)


def test_corrupt_files_are_refused(data, tmp_path):
    path = tmp_path / "x.parquet"
    write(path, TEXTS, ROWS.tolist())
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[40:200] = bytes(160)
    for bad in (b"", b"text", content[:-9], b"PAR1" + bytes(90) + b"PAR1", bytes(damaged)):
        path.write_bytes(bad)
        refused(path, data, "cannot be read: ")
    path = tmp_path / "x.npy"
    for bad in (b"", b"\x93NUMPY", b"PK\x03\x04"):
        path.write_bytes(bad)
        refused(path, data, "cannot be used: ")
    np.savez(tmp_path / "x.npz", train=ROWS)
    (tmp_path / "x.npz").rename(path)
    refused(path, data, r"cannot be used: it is a \.npz file with the name of a \.npy file; rename")


def test_other_files_are_refused(data, tmp_path):
    refused(tmp_path / "nothing.parquet", data, "There is no file")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", data, r"has no \.parquet file")
    (tmp_path / "x.csv").write_text("text,embedding\n")
    refused(tmp_path / "x.csv", data, r"neither a \.npy nor a \.npz file")
    for rows in (np.full((23, 3), NAN), np.ones(23), np.full((23, 3), "a")):
        np.save(tmp_path / "x.npy", rows)
        refused(tmp_path / "x.npy", data, "NaN or infinite|expected numbers of shape")
    path = tmp_path / "x.parquet"
    write(path, TEXTS, ROWS.tolist())
    with pytest.raises(RequestError, match=re.escape("are no texts; give data.source text:PATH")):
        read(path, load("digits"))
