"""Metrics of an evaluation against brute force; impossible evaluations are refused."""

import numpy as np
import oracles
import pytest
import scipy.stats
from PIL import Image

from pcjax import metrics
from pcjax._checks import RequestError
from pcjax.config import Data, Evaluation, Model, Training
from pcjax.data import load
from pcjax.evaluation import (
    Other,
    check_evaluation,
    coherence_score,
    evaluate,
    load_other,
    show,
    throughput,
)
from pcjax.evaluation.evaluate import compute, corruption_metrics, labels_of
from pcjax.metrics.registry import Context, all_metrics, metric, value_specs
from pcjax.teachers import Teacher
from pcjax.training.build import build_model

SECTION = Evaluation(neighbours=4, batch=64)


def arrays(path, images, labels=None):
    np.savez(path, images=images, **({} if labels is None else {"labels": np.asarray(labels)}))
    return f"arrays:{path}"


# The data sets have 144 training examples, 16 for validation, and 40 for every test: one compiled
# program for each metric serves them all.


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """Two hundred images of four classes, 12 x 12 in colour."""
    rng = np.random.default_rng(1)
    labels = np.arange(200) % 4
    patterns = np.kron(rng.integers(0, 200, (4, 2, 2, 3)), np.ones((1, 6, 6, 1), int))
    images = (patterns[labels] + rng.integers(0, 50, (200, 12, 12, 3))).astype(np.uint8)
    return arrays(tmp_path_factory.mktemp("other") / "other.npz", images, labels)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return digits without their last five classes, and an untrained model, also as teacher."""
    digits = load("digits").train
    rows = np.concatenate([np.flatnonzero(digits.labels == label)[-40:] for label in range(10)])
    images, labels = digits.take(rows), digits.labels[rows]
    source = arrays(tmp_path_factory.mktemp("small") / "small.npz", images, labels)
    dataset = load(source, unseen=5)
    sizes = {name: len(part) for name, part in dataset.parts.items()}
    assert sizes == {"train": 144, "validation": 16, "test": 40, "unseen": 40}
    model = build_model(
        Model("mlp", {"features": 5, "widths": (6,)}), dataset, Training(batch=32), 0
    )
    return dataset, model, Teacher.from_model(model, dataset, batch=64)


def by_brute_force(x, labels, k):
    """Compute leave-one-out k-NN, recall at 1 and mean average precision."""
    directions = x / np.linalg.norm(x, axis=1, keepdims=True)
    similarity = directions @ directions.T
    right, precisions = [], []
    for i, row in enumerate(similarity):
        order = np.argsort(-row, kind="stable")
        order = order[order != i]
        relevant = labels[order] == labels[i]
        hits = relevant * np.cumsum(relevant) / np.arange(1, len(order) + 1)
        precisions.append(hits.sum() / relevant.sum())
        votes = {}
        for j in order[:k]:
            votes[labels[j]] = votes.get(labels[j], 0) + np.exp(row[j] / 0.07)
        right.append((max(votes, key=votes.get) == labels[i], relevant[0]))
    return *np.mean(right, axis=0), np.mean(precisions)


def spearman_by_brute_force(student, teacher, dissimilarity):
    """Average Spearman's correlation of the dissimilarities, seen from every example."""
    d = [oracles.dissimilarity(dissimilarity, x, x) for x in (student, teacher)]
    rows = ((np.delete(x[i], i) for x in d) for i in range(len(student)))
    return np.mean([scipy.stats.spearmanr(*row).statistic for row in rows])


def test_unseen_classes_are_evaluated_among_themselves(small):
    dataset, model, teacher = small
    results = evaluate({"student": model}, teacher, dataset, SECTION).results
    # Only a student is searched for in the teacher's index: this one has the very same features.
    found = results["student"]["search_recall"]
    assert found == pytest.approx(1)
    assert results["student"] == results["teacher"] | {"index_recall": found}
    unseen, labels = results["student"]["unseen"], dataset.unseen.labels
    assert (unseen["examples"], unseen["classes"]) == (len(labels), 5)
    for part, result in (("unseen", unseen), ("test", results["student"])):
        features = teacher.features[part].astype(np.float64)
        knn, recall, precision = by_brute_force(features, dataset.parts[part].labels, 4)
        assert result["retrieval"]["recall_at_1"] == pytest.approx(recall, abs=1e-6)
        assert result["retrieval"]["mean_average_precision"] == pytest.approx(precision, abs=1e-5)
        if part == "unseen":
            assert result["knn_accuracy"] == pytest.approx(knn)
    assert unseen["linear_probe_accuracy"] is None
    assert unseen["coherence"]["neighbours"]["value"] == pytest.approx(1)
    assert unseen["linear_cka"] == pytest.approx(1, abs=1e-5)


def test_narrow_features_are_padded_without_changing_a_metric(small):
    """Equal widths share compiled programs."""
    dataset, _, teacher = small
    narrow = {part: rows[:, :3] for part, rows in teacher.features.items()}
    wide = teacher.features["test"]
    results = compute(Context(narrow, wide, labels_of(dataset), neighbours=4))
    spearman = spearman_by_brute_force(narrow["test"], wide, "cosine")
    assert results["coherence"]["spearman"]["value"] == pytest.approx(spearman, abs=1e-5)
    shared = oracles.shared_neighbours(narrow["test"], wide, 4).mean()
    assert results["coherence"]["neighbours"]["value"] == pytest.approx(shared, abs=1e-5)
    _, recall, precision = by_brute_force(narrow["test"], dataset.test.labels, 4)
    assert results["retrieval"]["recall_at_1"] == pytest.approx(recall)
    assert results["retrieval"]["mean_average_precision"] == pytest.approx(precision, abs=1e-5)
    cka = float(metrics.linear_cka(narrow["test"], wide))
    assert results["linear_cka"] == pytest.approx(cka, abs=1e-5)


@pytest.mark.parametrize(
    "dissimilarity", ["cosine", "manhattan", pytest.param("euclidean", marks=pytest.mark.nightly)]
)
def test_the_checkpoint_score_is_spearmans_degree(dissimilarity, rng):
    teacher = rng.normal(size=(60, 5)).astype(np.float32)
    student = teacher[:, :3] + rng.normal(size=(60, 3)).astype(np.float32)
    teacher[3] = teacher[4]  # a tie
    expected = spearman_by_brute_force(student, teacher, dissimilarity)
    score = coherence_score(student, teacher, dissimilarity)
    assert score == pytest.approx(expected, abs=1e-5)
    assert coherence_score(np.ones((60, 3), np.float32), teacher, dissimilarity) == 0
    assert np.isnan(coherence_score(np.full((60, 3), np.nan, np.float32), teacher))


def test_the_own_data_as_other_data_have_the_same_metrics(small, coloured):
    dataset, _, teacher = small
    same = load(dataset.source, unseen=5)
    results = evaluate({}, teacher, dataset, SECTION, Other(same)).results["teacher"]
    other = results["other"][dataset.source]
    assert 0.2 < other["linear_probe_accuracy"] <= 1
    for name in ("knn_accuracy", "linear_probe_accuracy", "retrieval"):
        assert other[name] == results[name]
    assert other["coherence"]["spearman"]["value"] == pytest.approx(1)
    # another size and colours
    section = Evaluation(neighbours=4, batch=64, other=coloured)
    fitted = load_other(section, dataset, Data())
    assert fitted.dataset.train.shape == (8, 8, 1)
    result = evaluate({}, teacher, dataset, section, fitted).results["teacher"]["other"][coloured]
    assert result["linear_probe_accuracy"] > 0.9


def test_a_folder_of_images_serves_as_other_data(small, tmp_path):
    for number in range(40):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 30), (number, 0, 0)).save(path)
    section = Evaluation(other=f"images:{tmp_path}")
    other = load_other(section, small[0], Data(image_labels="folders")).dataset
    assert other.train.shape == (8, 8, 1)
    assert other.train.classes == ("a", "b")
    assert load_other(section, small[0], Data()).dataset.train.labels is None


def test_corruptions_change_the_queries_alone(small):
    dataset, model, teacher = small
    names = ("gaussian_noise", "brightness", "gaussian_noise")
    section = Evaluation(neighbours=4, batch=64, corruptions=names)
    result = corruption_metrics(model, teacher.features, teacher, dataset, section)
    assert list(result) == ["clean", "gaussian_noise", "brightness", "mean"]
    noise = result["gaussian_noise"]
    assert noise["mean"] == pytest.approx((noise["1"] + noise["2"] + noise["3"]) / 3)
    assert noise["3"] < result["clean"]
    assert corruption_metrics(model, teacher.features, teacher, dataset, section) == result


def test_without_labels_corruptions_are_measured_by_coherence(tmp_path):
    images = load("digits").train.take(np.arange(200))
    dataset = load(arrays(tmp_path / "plain.npz", images))
    model = build_model(Model("mlp", {"features": 5, "widths": (6,)}), dataset, Training(), 0)
    teacher = Teacher.from_model(model, dataset, batch=64)
    section = Evaluation(neighbours=4, batch=64, corruptions=("gaussian_noise",))
    results = evaluate({}, teacher, dataset, section).results["teacher"]
    assert results["knn_accuracy"] is None
    assert results["corruptions"]["clean"] == pytest.approx(1)
    noise = results["corruptions"]["gaussian_noise"]
    assert 1 > noise["1"] > noise["3"]


def test_sizes_and_throughput(small):
    dataset, model, teacher = small
    results = evaluate({}, teacher, dataset, SECTION).results["teacher"]
    # 64 x 6 without biases, a normalisation of four vectors, 6 x 5 and 5 x 5 with biases; float32
    assert results["bytes"] == 4 * (64 * 6 + 4 * 6 + 7 * 5 + 6 * 5)
    measured = throughput(model, dataset, 16)
    assert measured["batch"] == 16
    assert measured["examples_per_second"] > 0


def test_a_new_metric_is_computed_and_shown(small, monkeypatch, capsys):
    """One decorated function: it is in the results and in the table."""
    from pcjax.display import Display
    from pcjax.metrics import registry

    monkeypatch.setattr(registry, "_own", dict(all_metrics()))

    @metric("mean_length", title="mean length", unit="number")
    def mean_length(context):
        return float(np.linalg.norm(context.test, axis=1).mean())

    dataset, _, teacher = small
    results = evaluate({}, teacher, dataset, SECTION).results
    expected = np.linalg.norm(teacher.features["test"], axis=1).mean()
    assert results["teacher"]["mean_length"] == pytest.approx(expected, rel=1e-5)
    assert value_specs()["mean_length"][0] == "mean length"
    show(results, Display())
    assert "mean length" in capsys.readouterr().out


def dataset_of(tmp_path, labels, shape=(8, 8, 1), name="given", **more):
    images = np.random.default_rng(0).random((len(labels), *shape), np.float32)
    return load(arrays(tmp_path / f"{name}.npz", images, labels), **more)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({"labels": [0, 1] * 28}, {}, "evaluation.neighbours=10, but the test examples"),
        ({"labels": [3] * 200}, {}, "have one class: leave the labels out"),
        ({"labels": [0, 1] * 100, "shape": (4,)}, {"corruptions": ("all",)}, "needs images"),
        ({"labels": [0, 1] * 80 + [2, 3] * 4, "unseen": 2}, {}, "leave out more classes"),
        ({"labels": [0, 1] * 8}, {}, "has 1 validation examples, 4 are needed"),
    ],
)
def test_impossible_evaluations_are_refused(given, options, message, tmp_path):
    with pytest.raises(RequestError) as caught:
        check_evaluation(Evaluation(**options), dataset_of(tmp_path, **given))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([2] * 80, "have one class"),
        ([0, 1] * 5, "has 7 training examples, fewer than evaluation.neighbours=10"),
    ],
)
def test_other_data_need_classes_and_neighbours(labels, message, tmp_path):
    own, other = dataset_of(tmp_path, [0, 1] * 100), dataset_of(tmp_path, labels, name="other")
    with pytest.raises(RequestError) as caught:
        check_evaluation(Evaluation(), own, Other(other))
    assert message in str(caught.value)


def test_other_data_of_another_kind_are_refused_by_the_field(tmp_path, small):
    source = arrays(tmp_path / "flat.npz", np.zeros((50, 9)), [0, 1] * 25)
    with pytest.raises(RequestError, match=r"evaluation\.other: got examples of shape \(9,\)"):
        load_other(Evaluation(other=source), small[0], Data())
