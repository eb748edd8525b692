"""Describe configs and results in words and tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pcjax.config import Data, Loss, Model, Teacher, Training
from pcjax.evaluation.tables import SIZES, models_of, value_at
from pcjax.metrics.registry import value_specs
from pcjax.report.page import Markup, joined, tag

THROUGHPUT = "throughput.examples_per_second"
GROUPS = {"unseen": "unseen classes", "other": "other data", "corruptions": "corrupted images"}


def title_and_unit(path: str) -> tuple[str, str]:
    """Return title and unit of a value of result.json by its dotted path.

    >>> title_and_unit("knn_accuracy")
    ('k-NN accuracy', 'share')
    """
    if path in value_specs():
        title, unit, _ = value_specs()[path]
        return title, unit
    if path in SIZES:
        return SIZES[path], "count"
    if path == THROUGHPUT:
        return "examples a second", "count"
    first, _, rest = path.partition(".")
    if first in GROUPS and rest:
        title, unit = title_and_unit(rest)
        return f"{GROUPS[first]}: {title}", "share" if first == "corruptions" else unit
    # The name of a data set precedes the metric.
    for name in value_specs():
        if path.endswith(f".{name}"):
            title, unit = title_and_unit(name)
            return f"{path.removesuffix(f'.{name}')}: {title}", unit
    return path.replace("_", " ").replace(".", ": "), "number"


def number(value: object, unit: str = "number") -> str:
    """Format a value: a share in percent, a count with separators."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if unit == "share":
        return f"{100 * value:.1f} %"
    if isinstance(value, int) or unit == "count":
        return f"{round(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.1f}"
    return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.3g}"


def interval(value: float, low: float | None, high: float | None, unit: str) -> Markup:
    """Format a value with its 95 % interval below it, where it has one."""
    if low is None or high is None:
        return joined([number(value, unit)])
    if unit == "share":  # between 0 and 100 %
        low, high = max(low, 0.0), min(high, 1.0)
    between = " to " if low < 0 else "\N{EN DASH}"
    least, most = number(low, unit).removesuffix(" %"), number(high, unit)
    return joined([number(value, unit), tag("br"), tag("small", least, between, most)])


def cell(value: Any, unit: str) -> str:
    """Format a value of result.json."""
    if isinstance(value, Mapping):
        return interval(value["value"], value["low"], value["high"], unit)
    return number(value, unit)


def result_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows of the table of models; leave rows without values out."""
    models = models_of(results)
    specs = sorted(value_specs().items(), key=lambda item: item[1][1] != "share")
    metrics = [path for path, _ in specs]
    rows = []

    def add(title: str, unit: str, values: Iterable[Any]) -> None:
        rows.append([title, *(cell(value, unit) for value in values)])

    for path in [*SIZES, THROUGHPUT, *metrics, *(f"unseen.{path}" for path in metrics)]:
        add(*title_and_unit(path), (value_at(model, path) for model in models.values()))
    for source in _names(models, "other"):
        others = [model.get("other", {}).get(source, {}) for model in models.values()]
        for path in metrics:
            title, unit = title_and_unit(path)
            add(f"{source}: {title}", unit, (value_at(other, path) for other in others))
    for name in _names(models, "corruptions"):
        values = [model.get("corruptions", {}).get(name) for model in models.values()]
        means = [value.get("mean") if isinstance(value, Mapping) else value for value in values]
        add(f"{GROUPS['corruptions']}: {name.replace('_', ' ')}", "share", means)
    return ["", *models], [row for row in rows if any(row[1:])]


def _names(models: Mapping[str, Mapping[str, Any]], group: str) -> list[str]:
    return list(dict.fromkeys(name for model in models.values() for name in model.get(group, {})))


def conclusion(results: Mapping[str, Any], dissimilarity: str) -> str:
    """State the result of a run in one or two sentences."""
    if "student" not in results:
        return _teacher(results["teacher"])
    knn, sizes, coherence = (
        [value_at(results, f"{name}.{path}") for name in names]
        for path, *names in (
            ("knn_accuracy", "student", "teacher"),
            ("parameters", "student", "teacher"),
            ("coherence.spearman.value", "untrained", "student"),
        )
    )
    sentences = []
    if None not in knn:
        student, teacher = (number(value, "share") for value in knn)
        share = number(sizes[0] / sizes[1], "share") if all(sizes) else ""
        size = f" with {share} of the teacher's parameters" if share else ""
        sentences.append(
            f"The student reaches {student} k-NN accuracy{size}; the teacher reaches {teacher}."
        )
    if None not in coherence:
        before, after = coherence
        sentences.append(
            f"Training changed the student's coherence with the teacher ({dissimilarity}) from "
            f"{before:.3f} to {after:.3f}."
        )
    return " ".join(sentences)


def _teacher(teacher: Mapping[str, Any]) -> str:
    knn, probe = (value_at(teacher, name) for name in ("knn_accuracy", "linear_probe_accuracy"))
    if knn is None:
        return "The teacher is trained."
    linear = "" if probe is None else f" and {number(probe, 'share')} by a linear probe"
    return f"The teacher reaches {number(knn, 'share')} k-NN accuracy{linear}."


def describe_teaching(data: Data, teacher: Teacher) -> dict[str, str]:
    """Describe how a teacher is trained."""
    return {
        "Data": _data(data),
        "Teacher": _model(teacher.model),
        "Training": _training(teacher.training),
    }


def describe_distillation(
    data: Data, teacher: Teacher, student: Model, losses: Iterable[Loss], training: Training
) -> dict[str, str]:
    """Describe how a student is trained, and under which teacher."""
    return {
        "Data": _data(data),
        "Teacher": _teacher_origin(teacher),
        "Student": _model(student),
        "Losses": "; ".join(map(_loss, losses)),
        "Training": _training(training),
    }


def _data(data: Data) -> str:
    held_out = f"{100 * data.validation:.3g} % of the training examples held out for validation"
    changes = [f"random crops after {data.crop} pixels of padding"] * bool(data.crop)
    changes += ["random flips"] * data.flip
    return ", ".join([data.source, held_out, *changes])


def _teacher_origin(teacher: Teacher) -> str:
    if teacher.features is not None:
        origin = f"features in {teacher.features}"
    elif teacher.source is not None:
        origin = teacher.source
    elif teacher.run is not None:
        origin = f"the run in {teacher.run}"
    else:
        origin = f"{_model(teacher.model)}, trained for this run with labels"
    return origin + (", sees every augmented image" if teacher.live else "")


def _model(model: Model) -> str:
    return _with_options(model.name, model.options)


def _loss(loss: Loss) -> str:
    options: dict[str, Any] = {} if loss.head == "none" else {"head": loss.head}
    options |= {"bank": loss.bank} if loss.bank else {}
    options |= {"maps": loss.maps} if loss.maps else {}
    weight = "" if loss.weight == 1 else f"{_value(loss.weight)} times "
    return weight + _with_options(loss.name, options | dict(loss.arguments))


def _with_options(name: str, options: Mapping[str, Any]) -> str:
    items = [f"{option.replace('_', ' ')} {_value(value)}" for option, value in options.items()]
    return f"{name} ({', '.join(items)})" if items else name


def _value(value: Any) -> str:
    if hasattr(value, "start"):
        return f"{value.start:g} to {value.end:g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _training(training: Training) -> str:
    length = f"{training.steps} steps" if training.steps else f"{training.epochs} epochs"
    rate = f"{training.optimiser} with a learning rate of {training.learning_rate:g}"
    schedule = f"({training.schedule}), seed {training.seed}"
    return f"{length} of {training.batch} examples, {rate} {schedule}"
