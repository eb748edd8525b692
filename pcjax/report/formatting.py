"""What was asked and what came of it, in words and tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from pcjax.report.page import Markup, joined, tag

TITLES = {"teacher": "teacher", "untrained": "student before", "student": "student after"}
METRICS = {
    "parameters": "parameters",
    "flops": "FLOPs an example",
    "knn_accuracy": "k-NN accuracy",
    "linear_probe_accuracy": "linear probe",
    "coherence": "coherence",
}
SHARES = ("accuracy", "recall", "precision", "corruptions")
_WITHIN = "|"  # in a path: a data set's name may have dots and slashes


def title_of(metric: str) -> str:
    """A metric as a person calls it."""
    first, *rest = metric.split(_WITHIN)
    return ": ".join(
        [METRICS.get(first, first.replace("_", " ")), *(part.replace("_", " ") for part in rest)]
    )


def number(metric: str, value: object) -> str:
    """A value of that metric; shares of examples as percentages."""
    if value is None:
        return "none"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if any(share in metric for share in SHARES):
        return f"{100 * value:.1f} %"
    if abs(value) >= 1000:
        return f"{value:,.1f}"
    return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.3g}"


def interval(metric: str, value: float, low: float, high: float) -> Markup:
    """A value and where it lies with 95 %."""
    least, most = number(metric, low), number(metric, high)
    between = " to " if low < 0 else "\N{EN DASH}"
    return joined(
        [number(metric, value), tag("br"), tag("small", least.removesuffix(" %"), between, most)]
    )


def leaves(found: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Every number by its path, "coherence|spearman"; a value with its interval counts as one."""
    flat: dict[str, Any] = {}
    for name, value in found.items():
        if isinstance(value, Mapping) and not value.keys() >= {"value", "low", "high"}:
            flat |= leaves(value, f"{before}{name}{_WITHIN}")
        else:
            flat[f"{before}{name}"] = value
    return flat


def results(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The columns and the rows of the table of teacher and student: every number there is."""
    who = [name for name in TITLES if isinstance(result.get(name), Mapping)]
    flat = {name: leaves(result[name]) for name in who}
    metrics = list(dict.fromkeys([*METRICS, *(metric for of in flat.values() for metric in of)]))
    metrics = [metric for metric in metrics if any(metric in of for of in flat.values())]
    return ["", *(TITLES[name] for name in who)], [
        [title_of(metric), *(cell(metric, flat[name].get(metric, "")) for name in who)]
        for metric in metrics
    ]


def cell(metric: str, value: Any) -> str:
    """What a table shows of a metric."""
    if isinstance(value, Mapping):
        return interval(metric, value["value"], value["low"], value["high"])
    if value is None and metric in ("knn_accuracy", "linear_probe_accuracy"):
        return "no labels"
    return number(metric, value)


def asked(job: str, config: Mapping[str, Any]) -> dict[str, str]:
    """The config as a person would tell it."""
    data, teacher = config["data"], config["teacher"]
    held = f"{100 * data['validation']:.3g} % of the training examples held out for validation"
    changed = [f"random crops after {data['crop']} pixels of padding"] * bool(data["crop"])
    changed += ["random flips"] * bool(data["flip"])
    told = {"Data": ", ".join([data["source"], held, *changed])}
    if job == "teach":
        return told | {
            "Teacher": _model(teacher["model"]),
            "Training": _training(teacher["training"]),
        }
    if teacher["features"] is not None:
        origin = f"its features as stored in {teacher['features']}"
    elif teacher["run"] is not None:
        origin = f"of the run in {teacher['run']}"
    else:
        origin = f"{_model(teacher['model'])}, trained for this run with labels"
    return told | {
        "Teacher": origin + (", sees every augmented image" if teacher["live"] else ""),
        "Student": _model(config["student"]),
        "Losses": "; ".join(_loss(loss) for loss in config["losses"]),
        "Training": _training(config["training"]),
    }


def _model(model: Mapping[str, Any]) -> str:
    return _with(model["name"], {name: value for name, value in model.items() if name != "name"})


def _loss(loss: Mapping[str, Any]) -> str:
    others = {
        name: value for name, value in loss.items() if name not in ("name", "weight", "arguments")
    }
    more = {name: value for name, value in others.items() if value not in (0, "none")} | dict(
        loss["arguments"]
    )
    weight = loss["weight"]
    return ("" if weight == 1 else f"{_value(weight)} times ") + _with(loss["name"], more)


def _with(name: str, options: Mapping[str, Any]) -> str:
    given = [
        f"{option.replace('_', ' ')} {_value(value)}"
        for option, value in options.items()
        if value not in (None, [], {})
    ]
    return f"{name} ({', '.join(given)})" if given else name


def _value(value: Any) -> str:
    if isinstance(value, Mapping) and value.keys() >= {"start", "end"}:
        return f"{value['start']:g} to {value['end']:g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_value(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _training(training: Mapping[str, Any]) -> str:
    length = f"{training['steps']} steps" if training["steps"] else f"{training['epochs']} epochs"
    rate = f"{training['optimiser']} with a learning rate of {training['learning_rate']:g}"
    return f"{length} of {training['batch']} examples, {rate} ({training['schedule']}), seed {training['seed']}"
