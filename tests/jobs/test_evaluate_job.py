"""What is judged: numbers of features against brute force, and what cannot be judged is refused before training."""

import json

import numpy as np
import pytest

from pcjax import metrics
from pcjax._checks import RequestError
from pcjax.config import Config, Data, Evaluation, Model, Training
from pcjax.data import load as load_data
from pcjax.evaluation import extras as beyond
from pcjax.evaluation import measures
from pcjax.evaluation.evaluate import check_judging, judge, judge_model
from pcjax.jobs.prepare import load, new_model
from pcjax.training.embedding import represent_all

CONFIG = Config(student=Model("mlp", features=5, widths=(6,)), training=Training(batch=32))


def arrays(path, images, labels, **more):
    np.savez(path, images=images, labels=np.asarray(labels), **more)
    return f"arrays:{path}"


@pytest.fixture(scope="module")
def mnist_like(tmp_path_factory):
    """Eighty images of four classes, 12 x 12 in colour."""
    rng = np.random.default_rng(1)
    labels = np.arange(80) % 4
    patterns = np.kron(rng.integers(0, 200, (4, 2, 2, 3)), np.ones((1, 6, 6, 1), int))
    images = (patterns[labels] + rng.integers(0, 50, (80, 12, 12, 3))).astype(np.uint8)
    return arrays(tmp_path_factory.mktemp("other") / "other.npz", images, labels)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Digits, few of them, of which the last three classes are not seen, and an untrained model's features."""
    digits = load_data("digits").train
    images, labels = digits.take(np.arange(400)), digits.labels[:400]
    source = arrays(tmp_path_factory.mktemp("small") / "small.npz", images, labels)
    config = Config(
        data=Data(source, unseen=3), evaluation=Evaluation(neighbours=4), student=CONFIG.student
    )
    loaded = load(config)
    model = new_model(config.student, loaded, config.training, 0)
    said = represent_all(model, loaded.examples, loaded.normalise, 64)
    return config, loaded, model, {part: one.features for part, one in said.items()}


def by_brute_force(x, labels, k):
    """Leave-one-out k-NN by weighted and by equal votes, recall at 1 and mean average precision."""
    directions = x / np.linalg.norm(x, axis=1, keepdims=True)
    similarity = directions @ directions.T
    right, precisions = [], []
    for i, row in enumerate(similarity):
        order = np.argsort(-row, kind="stable")
        order = order[order != i]
        relevant = labels[order] == labels[i]
        precisions.append(
            (relevant * np.cumsum(relevant) / np.arange(1, len(order) + 1)).sum() / relevant.sum()
        )
        votes = {}
        for j in order[:k]:
            votes[labels[j]] = votes.get(labels[j], 0) + np.exp(row[j] / 0.07)
        right.append((max(votes, key=votes.get) == labels[i], relevant[0]))
    knn, recall = np.mean(right, axis=0)
    return knn, recall, np.mean(precisions)


def test_unseen_classes_are_judged_among_themselves_and_the_others_apart(small):
    config, loaded, _, features = small
    found = judge(features, features, loaded.examples, config.evaluation)
    unseen, labels = found["unseen"], loaded.examples.unseen.labels
    assert (unseen["examples"], unseen["classes"]) == (len(labels), 3)
    for own, examples, inside in (
        ("unseen", loaded.examples.unseen, unseen),
        ("test", loaded.examples.test, found),
    ):
        knn, recall, precision = by_brute_force(
            features[own].astype(np.float64), examples.labels, 4
        )
        assert inside["retrieval"]["recall_at_1"] == pytest.approx(recall, abs=1e-6)
        assert inside["retrieval"]["mean_average_precision"] == pytest.approx(precision, abs=1e-5)
        if own == "unseen":
            assert inside["knn_accuracy"] == pytest.approx(knn)
    expected = metrics.coherence(features["unseen"], features["unseen"], k=4).neighbours.value
    assert unseen["coherence"]["neighbours"]["value"] == pytest.approx(float(expected)) == 1
    assert unseen["linear_cka"] == pytest.approx(1, abs=1e-5)


def test_zeros_beside_the_features_change_nothing(small):
    config, loaded, _, features = small
    some = {part: rows[:, :3] for part, rows in features.items()}
    teacher, labels = features["test"], loaded.examples.test.labels
    for name, value in measures.retrieved(some["test"], labels, 5).items():
        assert measures.retrieved(some["test"], labels)[name] == pytest.approx(value, abs=1e-6)
    plain = metrics.coherence(some["test"], teacher, k=4)
    found = measures.likeness(some["test"], teacher, config.evaluation)
    for name in measures.DEGREES:
        assert found["coherence"][name]["value"] == pytest.approx(
            float(getattr(plain, name).value), abs=1e-5
        )
    assert found["linear_cka"] == pytest.approx(
        float(metrics.linear_cka(some["test"], teacher)), abs=1e-5
    )


def test_the_own_data_as_another_domain_are_worth_the_same(small, mnist_like):
    config, loaded, model, features = small
    # the same examples once more: what was not seen of them is seen there
    everything = load_data(config.data.source)
    ordinary = measures.by_labels(features, loaded.examples, config.evaluation)
    assert 0.2 < ordinary["linear_probe_accuracy"] <= 1
    given = model, features, features, loaded.examples, loaded.normalise, config.evaluation
    again = judge_model(*given, load_data(config.data.source, unseen=3))
    assert again["other"] == {config.data.source: ordinary}
    assert judge_model(*given, everything)["other"] != again["other"]
    # another size and colours
    other = beyond.load_other(Config(evaluation=Evaluation(other=mnist_like)), loaded.examples)
    assert other.train.shape == (8, 8, 1)
    found = beyond.judge_beyond(
        model, features, loaded.examples, loaded.normalise, config.evaluation, other
    )
    assert found["other"][mnist_like]["linear_probe_accuracy"] > 0.9


def test_robustness_is_of_the_corrupted_queries_alone(small):
    _, loaded, model, features = small
    asked = Evaluation(neighbours=4, corruptions=("gaussian_noise", "brightness", "gaussian_noise"))
    found = beyond.robustness(model, features, loaded.examples, loaded.normalise, asked)
    assert list(found) == ["clean", "gaussian_noise", "brightness", "mean"]
    assert found["clean"] == measures.by_labels(features, loaded.examples, asked)["knn_accuracy"]
    noise = found["gaussian_noise"]
    assert noise["mean"] == pytest.approx((noise["1"] + noise["2"] + noise["3"]) / 3)
    assert found["mean"] == pytest.approx((noise["mean"] + found["brightness"]["mean"]) / 2)
    assert noise["3"] < found["clean"]
    assert beyond.robustness(model, features, loaded.examples, loaded.normalise, asked) == found


def test_size_and_throughput(small):
    config, loaded, model, features = small
    found = judge_model(
        model, features, features, loaded.examples, loaded.normalise, config.evaluation
    )
    # 64 x 6 without biases, a normalisation of four vectors, 6 x 5 and 5 x 7 with biases; float32
    assert found["bytes"] == 4 * (64 * 6 + 4 * 6 + 7 * 5 + 6 * 7)
    assert "throughput" not in found
    measured = beyond.throughput(model, loaded.examples.test, loaded.normalise, 16)
    assert measured["batch"] == 16
    assert measured["examples_per_second"] > 100


def data_of(tmp_path, labels, shape=(8, 8, 1), name="given", **more):
    images = np.random.default_rng(0).random((len(labels), *shape), np.float32)
    return load_data(arrays(tmp_path / f"{name}.npz", images, labels), **more)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("given", "asked", "message"),
    [
        ({"labels": [0, 1] * 28}, {}, "got evaluation.neighbours 10 for the test examples from"),
        ({"labels": [3] * 200}, {}, "got training examples of the one class 3 from"),
        (
            {"labels": [0, 1] * 100, "shape": (4,)},
            {"corruptions": ("all",)},
            "only images have them, leave it out",
        ),
        (
            {"labels": [0, -1] * 100},
            {"corruptions": ("all",)},
            "without the class of every example: leave it out",
        ),
        (
            {"labels": [0, 1] * 80 + [2, 3] * 4, "unseen": 2},
            {},
            "expected at least 12 of 2; leave out more classes",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused(given, asked, message, tmp_path):
    with pytest.raises(RequestError) as caught:
        check_judging(Evaluation(**asked), data_of(tmp_path, **given), None)
    assert message in str(caught.value)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -1] * 40, "without the class of every example: give one with labels"),
        ([2] * 80, "with training examples of one class only: give one with at least two"),
        ([0, 1] * 5, "with 7 training examples: expected at least evaluation.neighbours, 10"),
    ],
)
def test_another_domain_needs_labels_classes_and_neighbours(labels, message, tmp_path):
    with pytest.raises(RequestError) as caught:
        check_judging(
            Evaluation(), data_of(tmp_path, [0, 1] * 100), data_of(tmp_path, labels, name="other")
        )
    assert message in str(caught.value)


def test_a_domain_that_cannot_be_matched_is_refused_by_its_field(tmp_path, small):
    source = arrays(tmp_path / "flat.npz", np.zeros((50, 9)), [0, 1] * 25)
    with pytest.raises(RequestError, match=r"evaluation\.other: got examples of shape \(9,\)"):
        beyond.load_other(Config(evaluation=Evaluation(other=source)), small[1].examples)


SMALL = [
    *(
        "--teacher.model.widths",
        "24",
        "--teacher.model.features",
        "12",
        "--teacher.training.steps",
        "20",
    ),
    *("--student.widths", "8", "--student.features", "4", "--training.steps", "20"),
    *("--training.batch", "64", "--teacher.training.batch", "64", "--training.devices", "1"),
    *("--teacher.training.devices", "1", "--training.save-every", "10"),
]


@pytest.mark.slow
def test_everything_about_a_run_by_the_commands(tmp_path, command, mnist_like):
    """Trained without three classes; judged there, elsewhere and on corrupted images; what was asked earlier stays."""
    run = tmp_path / "run"
    assert command("distill", *SMALL, "--data.unseen", 3, "--workdir", run)[0] == 0
    first = json.loads((run / "result.json").read_text())
    assert {found["unseen"]["classes"] for found in (first["teacher"], first["student"])} == {3}
    for given in (
        ["--corruptions", "contrast", "box_blur", "--other", mnist_like],
        ["--throughput", "--other", "digits"],
    ):
        status, said, complaint = command("evaluate", run, *given)
        assert status == 0, complaint
        judged = first["student"]["unseen"]["examples"]
        assert f"on {judged} test examples of 3 classes that no training saw" in said
    found = json.loads((run / "result.json").read_text())
    for name in ("teacher", "untrained", "student"):
        more = {key: value for key, value in found[name].items() if key not in first[name]}
        assert more.keys() == {"corruptions", "other", "throughput"}
        assert more["corruptions"].keys() == {"clean", "contrast", "box_blur", "mean"}
        assert more["other"].keys() == {mnist_like, "digits"}
        assert {key: found[name][key] for key in first[name]} == first[name]
    assert found["seconds"] == first["seconds"]
    # Its features serve where the same classes are left out, and its teacher nowhere else.
    assert command("embed", run)[0] == 0
    with np.load(run / "features.npz") as stored:
        assert len(stored["unseen"]) == first["student"]["unseen"]["examples"]
    taught = [*SMALL, "--teacher.features", run / "features.npz"]
    for unseen in (0, 2):
        given = [*taught, "--data.unseen", unseen, "--workdir", tmp_path / "other"]
        status, _, complaint = command("distill", *given)
        assert (status, complaint.count("\n")) == (2, 1)
        assert "is of other data or another split: embed digits as it is split here" in complaint
    assert command("distill", *taught, "--data.unseen", 3, "--workdir", tmp_path / "three")[0] == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["evaluate", "{run}", "more"],
            "got {run} more for evaluate: expected the folder of one run",
        ),
        (
            ["evaluate", "{run}", "--other-dir", "x"],
            "got --other-dir x without --other: give it too",
        ),
        (
            ["evaluate", "{run}", "--corruptions", "fog"],
            "unknown corruption 'fog': expected one of 'gaussian_noise'",
        ),
        (["evaluate", "{run}", "--nothing"], "--nothing"),
        (
            ["distill", "--evaluation.neighbours", "500"],
            "got evaluation.neighbours 500 for the test examples from digits: expected at most 357",
        ),
        (
            ["distill", "--data.unseen", "9"],
            "got unseen 9 for 'digits', which has 10 classes: expected at least 2",
        ),
        (
            ["distill", "--evaluation.other", "mnist"],
            "evaluation.other: unknown data source 'mnist'",
        ),
    ],
)
def test_wrong_requests_end_in_a_line(given, message, tmp_path, command):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(
        json.dumps({"job": "distill", "config": json.loads(Config().to_json())})
    )
    (run / "result.json").write_text("{}")
    arguments = [one.format(run=run) for one in given] + (
        ["--workdir", tmp_path / "x"] if given[0] == "distill" else []
    )
    status, _, complaint = command(*arguments)
    assert status == 2
    assert message.format(run=run) in complaint
    assert complaint.count("\n") == 1
    assert not (tmp_path / "x").exists()
