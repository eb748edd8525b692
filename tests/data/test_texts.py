"""Texts from files: every format is read to the letter, and every fault is refused in one line."""

import csv
import io
import itertools
import json

import numpy as np
import pytest

from pcjax._checks import RequestError
from pcjax.data import load, texts

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

ROWS = [
    ("plain", "b"),
    ('a "quoted", word', "a"),
    ("two\nlines", "b"),
    ("two\r\nlines of Windows", "a"),
    ("a tab\there", ""),
    (" spaces around ", "b"),
    ("u2028\u2028inside, u0085\x85too", "a"),
    ("שלום 🙂 👩‍👩‍👧 e\u0301", "b"),
]


def contents(store):
    return [store.text(row) for row in range(len(store))]


def delimited(rows):
    file = io.StringIO(newline="")
    csv.writer(file).writerows([("text", "label"), *rows])
    return file.getvalue().encode()


def write_parquet(path, **columns):
    parquet.write_table(pyarrow.table(columns), path)


def write(path, rows):
    """Write texts and labels in the format of the suffix."""
    if path.suffix == ".parquet":
        text, label = map(list, zip(*rows, strict=True))
        write_parquet(path, label=[each or None for each in label], text=text)
    elif path.suffix == ".jsonl":
        lines = [json.dumps({"label": b or None, "text": a}, ensure_ascii=False) for a, b in rows]
        path.write_text("\n".join(lines), encoding="utf-8", newline="")
    elif path.suffix == ".txt":
        path.write_text("\n".join(text for text, _ in rows), encoding="utf-8", newline="")
    elif path.suffix == ".tsv":
        path.write_text("".join(f"{a}\t{b}\n" for a, b in [("text", "label"), *rows]), "utf-8")
    else:
        path.write_bytes(delimited(rows))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_tables_are_read_to_the_letter(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    table = [row for row in ROWS if suffix != ".tsv" or not {*"\t\r\n"} & {*row[0]}]
    write(path, table)
    train = texts.read(str(path)).train
    assert contents(train) == [text for text, _ in table]
    numbers = [{"a": 0, "b": 1, "": -1}[label] for _, label in table]
    assert train.known_labels.tolist() == numbers
    assert train.known_labels.dtype == np.int32
    assert texts.read(str(path)).classes == ("a", "b")
    assert (train.lines.tolist(), train.total) == ([*range(len(table))], len(table))
    rows = np.array([3, 0, 3])
    read, labels = train.read(rows)
    assert read.tolist() == [table[row][0] for row in rows]
    assert labels.tolist() == [numbers[row] for row in rows]


QUOTED = ['"Hello", he said', '"no end', 'an end"', '"', '""', 'a "word" inside', "the last"]


def test_quotes_are_part_of_the_texts_of_a_tsv_file(tmp_path):
    write(tmp_path / "x.tsv", [(text, str(number)) for number, text in enumerate(QUOTED)])
    train = texts.read(str(tmp_path / "x.tsv")).train
    assert contents(train) == QUOTED
    assert train.labels().tolist() == [*range(len(QUOTED))]


@pytest.mark.parametrize("row", ['"no end,1', '"an end" and more,1'])
def test_an_unclosed_quote_swallows_no_other_row(row, tmp_path):
    """The error names the line where the row begins, not the end of the file."""
    lines = ["text,label", '"two', 'lines",0', "", row, *(f"more {n},1" for n in range(50))]
    (tmp_path / "x.csv").write_text("\n".join(lines))
    with pytest.raises(RequestError, match=r"x\.csv, line 5: .*; quote a text that holds a comma"):
        texts.read(str(tmp_path / "x.csv"))


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_long_fields_are_read_up_to_a_bound(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"x{suffix}"
    write(path, [("a" * 200_000, ""), ("b", "")])
    assert [len(text) for text in contents(texts.read(str(path)).train)] == [200_000, 1]
    monkeypatch.setattr(csv, "field_size_limit", lambda *_, own=csv.field_size_limit: own(199_999))
    with pytest.raises(RequestError, match=r"line 2: field larger than field limit \(199999\)"):
        texts.read(str(path))


def test_a_text_is_a_line(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes('first\nsecond, "2"\r\n third \u2028 \x85 \x0c end\n\n\t\nlast'.encode())
    splits = texts.read(str(path))
    assert contents(splits.train) == [
        *("first", 'second, "2"', " third \u2028 \x85 \x0c end", "last"),
    ]
    assert (splits.train.known_labels, splits.classes) == (None, None)
    assert splits.train.lines.tolist() == [0, 1, 2, 5]
    assert splits.train.total == 6


def test_the_labels_of_a_table_may_be_absent(tmp_path):
    (tmp_path / "x.csv").write_text("id,text\n1,one\n2,two\n")
    assert texts.read(str(tmp_path / "x.csv")).train.labels() is None


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl"])
def test_a_byte_order_mark_is_no_part_of_a_text(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    write(path, [("ä", "1"), ("b", "2")])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert contents(texts.read(str(path)).train) == ["ä", "b"]


def test_windows_ends_of_lines_are_no_part_of_a_text(tmp_path):
    files = {
        "x.txt": b"one\r\ntwo\r\n",
        "x.csv": b"text,label\r\none,1\r\ntwo,2\r\n",
        "x.jsonl": b'{"text": "one"}\r\n{"text": "two"}\r\n\r\n',
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert contents(texts.read(str(tmp_path / name)).train) == ["one", "two"]


def test_other_columns_are_named(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,review,stars\nno,good,1\nno,bad,0\n")
    splits = texts.read(str(path), text_column="review", label_column="stars")
    assert contents(splits.train) == ["good", "bad"]
    assert splits.train.labels().tolist() == [1, 0]


def test_a_folder_has_splits(tmp_path):
    files = {
        "train.txt": ["t"],
        "b.TXT": ["b"],
        "a.train.csv": ["a"],
        "latest.jsonl": ["late"],  # "test" is no part of its name that counts
        "validation.tsv": ["v"],
        "x.Validation.txt": ["v2"],
        "old.test.parquet": ["s"],
        "test.jsonl": ["s2"],
    }
    for name, rows in files.items():
        path = tmp_path / name
        write(path.with_suffix(path.suffix.lower()), [(row, "") for row in rows])
        path.with_suffix(path.suffix.lower()).rename(path)
    (tmp_path / "notes.md").write_text("no text")
    (tmp_path / "more.txt").mkdir()
    splits = texts.read(str(tmp_path))
    assert sorted(contents(splits.train)) == ["a", "b", "late", "t"]
    assert sorted(contents(splits.validation)) == ["v", "v2"]
    assert sorted(contents(splits.test)) == ["s", "s2"]
    data = load(f"text:{tmp_path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (4, 2, 2)


def test_shards_of_the_hub_are_splits(tmp_path):
    for name, count in (
        ("train-00000-of-00002", 3),
        ("train-00001-of-00002-0a1b2c3d4e5f", 2),
        ("validation-00000-of-00001", 4),
        ("mine.test-00000-of-00001", 5),
    ):
        write_parquet(tmp_path / f"{name}.parquet", text=[f"{name} {n}" for n in range(count)])
    splits = texts.read(str(tmp_path))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [5, 4, 5]
    assert all("test" in text for text in contents(splits.test))


@pytest.mark.parametrize("name", ["val.txt", "a.dev.txt", "VALID.txt", "eval-00000-of-00001.txt"])
def test_other_names_of_validation_are_refused(name, tmp_path):
    (tmp_path / "train.txt").write_text("a\nb")
    (tmp_path / name).write_text("c")
    with pytest.raises(RequestError, match=rf"{name}: '\w+' is the .* name it validation\.txt$"):
        texts.read(str(tmp_path))


def test_texts_in_folders_inside_are_not_left_out_silently(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    for name in (".cache/x.txt", "pictures/x.png", "val/deep/x.csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text("text\n")
    with pytest.raises(RequestError, match=r"val: a folder of texts inside .* or move its files"):
        texts.read(str(tmp_path))
    path.unlink()
    assert contents(texts.read(str(tmp_path)).train) == ["a"]


def test_a_text_is_kept_once_and_a_test_text_is_no_training_text(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,0\nc,1\na,1\n   ,0\ne,1\n")
    (tmp_path / "b.txt").write_text("e\n\nf\nb")
    (tmp_path / "validation.txt").write_text("b\nd\n \nb\ng")
    (tmp_path / "test.txt").write_text("c\nd\nd\n")
    splits = texts.read(str(tmp_path))
    assert contents(splits.test) == ["c", "d"]
    assert contents(splits.validation) == ["b", "g"]
    assert contents(splits.train) == ["a", "e", "f"]
    assert splits.train.known_labels.tolist() == [0, 1, -1]
    # Vectors in the order of the files are found by these numbers.
    places = [(s.lines.tolist(), s.total) for s in (splits.train, splits.validation, splits.test)]
    assert places == [([0, 4, 7], 9), ([0, 4], 5), ([0, 1], 3)]


@pytest.mark.parametrize(
    ("labels", "numbers", "classes"),
    [
        ([0, 2, None, 1], [0, 2, -1, 1], None),
        (["0", "12", None, "-1"], [0, 12, -1, -1], None),
        (["no", "yes", None, "no"], [0, 1, -1, 0], ("no", "yes")),
        (["2", "--1", "1", "2"], [2, 0, 1, 2], ("--1", "1", "2")),
        (["2", "²", "1", "٣"], [1, 2, 0, 3], ("1", "2", "²", "٣")),
        ([1, "1", "one", 2], [0, 0, 2, 1], ("1", "2", "one")),
        ([1.0, 0.0, None, 2], [1, 0, -1, 2], None),
        ([float("nan"), 3.0, "3", float("nan")], [-1, 3, 3, -1], None),
        ([None] * 4, None, None),
    ],
    ids=str,
)
def test_labels_are_numbers_or_names(labels, numbers, classes, tmp_path):
    lines = [json.dumps({"text": f"t{n}", "label": label}) for n, label in enumerate(labels)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    splits = texts.read(str(tmp_path / "x.jsonl"))
    known = splits.train.known_labels
    assert (None if known is None else known.tolist()) == numbers
    assert splits.classes == classes


def test_labels_as_pandas_writes_them(tmp_path):
    """A column of integers with a gap becomes one of floats."""
    write_parquet(tmp_path / "x.parquet", text=["a", "b", "c"], label=[1.0, float("nan"), None])
    assert texts.read(str(tmp_path / "x.parquet")).train.labels().tolist() == [1, -1, -1]


@pytest.mark.parametrize("label", [-2, 2**20, 10**30, str(10**17), "-7", 1e30])
def test_labels_out_of_range_are_refused(label, tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "a", "label": label}))
    with pytest.raises(
        RequestError,
        match=rf"x\.jsonl: the labels must be numbers from 0, or names .* one is {int(label)}$",
    ):
        texts.read(str(tmp_path / "x.jsonl"))


def test_the_classes_of_all_splits_are_one_list(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,z\n")
    (tmp_path / "test.csv").write_text("text,label\nc,y\nd,z\n")
    splits = texts.read(str(tmp_path))
    assert splits.classes == ("x", "y", "z")
    assert splits.train.labels().tolist() == [0, 2]
    assert splits.test.labels().tolist() == [1, 2]


def test_the_fingerprint_is_of_texts_order_and_labels(tmp_path):
    def fingerprint(rows):
        write(tmp_path / "x.csv", rows)
        return texts.read(str(tmp_path / "x.csv")).train.fingerprint

    rows = [("ab", "0"), ("c", "1"), ("d", "0")]
    changed = [
        rows,
        [("a", "0"), ("bc", "1"), ("d", "0")],
        [("c", "1"), ("ab", "0"), ("d", "0")],
        [("ab", "1"), ("c", "1"), ("d", "0")],
        [("ab", "0"), ("c", "1")],
        [("ab", "0"), ("c", "1"), ("D", "0")],
        [(text, "") for text, _ in rows],
    ]
    assert len({fingerprint(each) for each in changed}) == len(changed)
    assert fingerprint(rows) == fingerprint([*rows, ("  ", "1"), rows[0]])


def parquet_bytes(**columns):
    file = io.BytesIO()
    write_parquet(file, **columns)
    return file.getvalue()


REFUSED = {
    "no column": ("x.csv", b"id,review\n1,good\n", r"no column 'text': it has 'id', 'review'$"),
    "no header": ("x.tsv", b"", r"no column 'text': it has none$"),
    "no key": (
        *("x.jsonl", b'{"text": null}\n\n{"txt": "b"}'),
        r", line 3 has no column 'text': it has 'txt'$",
    ),
    "no parquet column": ("x.parquet", parquet_bytes(a=["b"]), "no column 'text': it has 'a'$"),
    "empty": ("x.txt", b"", "no training texts; give a file with some$"),
    "blank": ("x.txt", b" \n\t\r\n\n", "no training texts; give a file with some$"),
    "no rows": ("x.csv", b"text,label\n", "no training texts; give a file with some$"),
    "no bytes": ("x.parquet", b"", "cannot be read: "),
    "Latin 1": ("x.txt", "a\nb\nä".encode("latin1"), r"is not UTF-8 after line \d+ "),
    "UTF-16": ("x.csv", "text\na".encode("utf-16"), "is not UTF-8 after line 0 "),
    "a surrogate": (
        *("x.jsonl", b'{"text": "\\ud83d\\ude42"}\n{"text": "a \\uD800"}'),
        "line 2 holds half of a surrogate pair; write it as UTF-8$",
    ),
    "a surrogate's label": (
        *("x.jsonl", b'{"text": "a", "label": "\\udfff"}'),
        "line 1 holds half of a surrogate pair; write it as UTF-8$",
    ),
    "no JSON": ("x.jsonl", b'{"text": "a"}\n\n{"text": "b"', "line 3 is not JSON"),
    "deep JSON": ("x.jsonl", b'{"text": ' + b"[" * 200_000, "line 1 is not JSON"),
    "a JSON list": ("x.jsonl", b'["a"]', "line 1 is not a JSON object"),
    "a number": ("x.jsonl", b'{"text": 5}', "line 1: 'text' must hold texts, and it holds 5$"),
    "a list": ("x.jsonl", b'{"text": ["a"]}', r"'text' must hold texts, and it holds \['a'\]$"),
    "parquet numbers": ("x.parquet", parquet_bytes(text=[1.5]), "must hold texts, and it holds 1."),
    "parquet lists": ("x.parquet", parquet_bytes(text=[["a"]]), "must hold texts, and it holds "),
    "parquet bytes": ("x.parquet", parquet_bytes(text=[b"a"]), "must hold texts, and it holds b'a"),
    "a label list": ("x.jsonl", b'{"text": "a", "label": [1]}', "'label' must hold whole numbers"),
    "a label share": (
        "x.jsonl",
        b'{"text": "a", "label": 0.5}',
        "'label' must hold whole numbers or",
    ),
    "cut parquet": ("x.parquet", parquet_bytes(text=["a"])[:-9], "cannot be read: "),
    "cut gibberish": ("x.parquet", b"PAR1" + bytes(90) + b"PAR1", "cannot be read: "),
    "an open quote": ("x.csv", b'"text\n' + b"a" * 200_000, "line 1: unexpected end of data; "),
    "a long header": ("x.csv", b"a" * 200_000 + b"\ntext", "no column 'text': it has 'a{60}'$"),
    "a comma": ("x.csv", b"text,label\na,1\na, b,1\n", "line 3 has 3 fields, and the header 2"),
    "a tab": ("x.tsv", b"text\tlabel\na\tb\t1\n", "line 2 has 3 fields, and the header 2; a text"),
    "another suffix": ("x.md", b"text", r"expected a file that ends with \.txt, \.csv, "),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_faults_are_refused_in_one_line(fault, tmp_path):
    name, content, reason = REFUSED[fault]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RequestError, match=reason) as refusal:
        texts.read(str(path))
    message = str(refusal.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 700


def test_missing_files_and_folders_without_texts_are_refused(tmp_path):
    with pytest.raises(RequestError, match=r"nothing\.txt: no such file; expected texts"):
        texts.read(str(tmp_path / "nothing.txt"))
    with pytest.raises(RequestError, match=r"no file in this folder ends with \.txt, \.csv"):
        texts.read(str(tmp_path))
    (tmp_path / "test.txt").write_text("only\ntest\ntexts")
    with pytest.raises(RequestError, match="no training texts, only test; add a file such as tra"):
        texts.read(str(tmp_path))
    (tmp_path / "train.txt").write_text("test\n\nonly")
    with pytest.raises(RequestError, match="no training texts, since all are blank or repeat text"):
        texts.read(str(tmp_path))


def test_load_splits_texts(tmp_path):
    path = tmp_path / "reviews.csv"
    rows = "".join(f"review {n},{n % 4}\n" for n in range(80))
    path.write_text(f"review,stars\n{rows}")
    options = {"text_column": "review", "label_column": "stars", "validation": 0.25}
    data = load(f"text:{path}", **options)
    parts = {name: part.take(np.arange(len(part))).tolist() for name, part in data.parts.items()}
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 48,
        "validation": 16,
        "test": 16,
    }
    assert sorted(itertools.chain(*parts.values())) == sorted(f"review {n}" for n in range(80))
    for name, part in data.parts.items():
        numbers = [int(text.split()[1]) for text in parts[name]]
        assert part.labels.tolist() == [number % 4 for number in numbers]
        assert np.bincount(part.labels).tolist() == [len(part) // 4] * 4
    half = load(f"text:{path}", part=0.5, **options)
    assert [len(part) for part in half.parts.values()] == [24, 8, 8]
    for name, part in half.parts.items():
        assert {*part.take(np.arange(len(part)))} <= {*parts[name]}
    assert load(f"text:{path}", **options).fingerprint == data.fingerprint != half.fingerprint
    with pytest.raises(RequestError, match="takes no text_column; remove text_column='review'"):
        load("digits", text_column="review")
    with pytest.raises(RequestError, match="no column 'text': it has 'review', 'stars'"):
        load(f"text:{path}")
