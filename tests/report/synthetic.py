"""Make up the folder of a comparison, summarised and drawn as by `pcjax compare`."""

import json

import numpy as np

from pcjax import _io
from pcjax.config import Evaluation
from pcjax.data import load
from pcjax.evaluation.summary import DIVERGED, DONE, Outcome, summarise
from pcjax.report.comparison_page import comparison_page
from pcjax.report.embedding_math import sample
from pcjax.report.side_by_side import FEATURES

METRICS = ("knn_accuracy", "linear_probe_accuracy", "coherence.spearman", "coherence.footrule")
LABELS = ("perception", "rkd", "crd", "kd")


def write_comparison(folder, labels=LABELS, *, seeds=3, diverged=(), labelled=("crd", "kd")):
    """Write losses of falling scores; `diverged` holds pairs of label and seed."""
    random = np.random.default_rng(0)
    outcomes = {}
    for place, label in enumerate(labels):
        outcomes[label] = {}
        for seed in range(seeds):
            run = folder / "runs" / label / str(seed)
            run.mkdir(parents=True)
            end = 0.95 - 0.03 * place + 0.01 * random.normal()
            lines = [
                {"step": step, "validation_coherence": end * (1 - np.exp(-step / 120))}
                for step in range(50, 501, 50)
            ]
            (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            failed = (label, seed) in diverged
            outcomes[label][seed] = Outcome(
                status=DIVERGED if failed else DONE,
                metrics={} if failed else {m: end - 0.02 * i for i, m in enumerate(METRICS)},
                untrained=dict.fromkeys(METRICS, 0.62),
                teacher_metrics=dict.fromkeys(METRICS, 0.99),
                seconds_per_step=0.004 + 0.001 * place + 1e-4 * seed,
                temporary_bytes=int(3e6 * (1 + place)),
                data="data",
                teacher="teacher",
            )
    comparison = summarise(outcomes, {label: label in labelled for label in labels})
    comparison |= {"versions": {"pcjax": "0.1.0"}, "config": {"training": {"steps": 500}}}
    _io.write_signed(folder / "comparison.json", comparison)
    return comparison


def page_of(folder, dataset=None, teacher=None):
    """Draw a comparison, by default of digits and noise."""
    dataset = dataset or load("digits", part=0.2)
    if teacher is None:
        teacher = np.random.default_rng(1).normal(size=(len(dataset.test), 4)).astype(np.float32)
    text = comparison_page(folder, dataset, teacher, Evaluation())
    (folder / "report.html").write_text(text)
    return text


def store_features(folder, label, seed, features):
    """Store the features of a run like `pcjax compare`."""
    np.save(folder / "runs" / label / str(seed) / FEATURES, features[sample(len(features))])
