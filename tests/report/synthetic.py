"""A comparison's folder as `pcjax compare` leaves it, with numbers that are made up."""

import json
import shutil

import numpy as np

METRICS = ("knn_accuracy", "linear_probe_accuracy", "spearman", "footrule")


def estimate(values):
    mean, n = float(np.mean(values)), len(values)
    half = None if n < 2 else 4.303 * float(np.std(values, ddof=1)) / n**0.5
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return {"mean": mean, "low": low, "high": high, "n": n}


def write_comparison(
    folder,
    labels=("perception", "rkd", "crd", "kd"),
    *,
    seeds=3,
    diverged=(),
    labelled=("crd", "kd"),
):
    """Losses of falling worth; `diverged` holds (label, seed)."""
    random = np.random.default_rng(0)
    runs, losses = {}, {}
    for place, label in enumerate(labels):
        runs[label] = {}
        for seed in range(seeds):
            own = folder / "runs" / label / str(seed)
            own.mkdir(parents=True)
            end = 0.95 - 0.03 * place + 0.01 * random.normal()
            lines = [
                {"step": step, "validation_score": value, "validation_coherence": value}
                for step in range(50, 501, 50)
                if (value := end * (1 - np.exp(-step / 120)))
            ]
            (own / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            failed = (label, seed) in diverged
            metrics = (
                {} if failed else {metric: end - 0.02 * at for at, metric in enumerate(METRICS)}
            )
            runs[label][str(seed)] = {
                "status": "diverged" if failed else "done",
                "metrics": metrics,
                "seconds_per_step": 0.004 + 0.001 * place + 1e-4 * seed,
                "temporary_bytes": int(3e6 * (1 + place)),
            }
    done = {
        label: {s: run["metrics"] for s, run in of.items() if run["status"] == "done"}
        for label, of in runs.items()
    }
    for label, of in runs.items():
        losses[label] = {"labelled": label in labelled, "runs": of, "summary": {}, "paired": {}}
        if done[label]:
            losses[label]["summary"] = {
                m: estimate([one[m] for one in done[label].values()]) for m in METRICS
            }
    for metric in METRICS:
        means = {
            label: loss["summary"][metric]["mean"]
            for label, loss in losses.items()
            if loss["summary"]
        }
        best = max(means, key=lambda label: means[label], default=None)
        for label in means:
            both = [seed for seed in done[label] if seed in done[best]]
            if label != best and both:
                differences = [
                    done[label][seed][metric] - done[best][seed][metric] for seed in both
                ]
                losses[label]["paired"][metric] = {"to": best, **estimate(differences)}
    found = {
        "losses": losses,
        "teacher": dict.fromkeys(METRICS, 0.99),
        "untrained": {metric: {"mean": 0.62} for metric in METRICS},
        "primary": "knn_accuracy",
        "versions": {"pcjax": "0.1.0", "jax": "0.10.2"},
        "config": {"training": {"steps": 500}},
    }
    (folder / "comparison.json").write_text(json.dumps(found))
    return found


def compared_from(run, folder, labels, missing=()):
    """A comparison whose students are all that of one `pcjax distill` run; the first loss's first seed diverged."""
    found = write_comparison(folder, (*labels, *missing), seeds=2, diverged={(labels[0], 0)})
    shutil.copytree(run / "teacher", folder / "teacher")
    told = (run / "config.json").read_text()
    (folder / "config.json").write_text(told.replace('"distill"', '"compare"', 1))
    for label in labels:
        shutil.copytree(
            run, folder / "runs" / label / str(int(label == labels[0])), dirs_exist_ok=True
        )
    return found
