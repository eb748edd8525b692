"""Fields of a config that the command line overrides: `--section.field value`."""

import ast
import dataclasses
import inspect
import itertools
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pcjax import _checks, _fields, config, models
from pcjax._checks import RequestError
from pcjax.config import Config, Contender, Loss, Model, Training, recipe
from pcjax.data.sources import all_sources
from pcjax.display import Display
from pcjax.losses.registry import RECIPES

Options = dict[str, list[str]]


def parse(words: list[str]) -> Options:
    """Group the words of a command line: {"training.batch": ["64"]} for --training.batch 64."""
    options: Options = {}
    values: list[str] = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            values = options.setdefault(name.replace("-", "_"), [])
            values[:] = [value] if equals else []
        elif not options:
            raise RequestError(f"Unexpected {word!r}; options are written --section.field value.")
        else:
            values.append(word)
    return options


def apply(base: Config, job: str, options: Options) -> Config:
    """Return the config with the fields that the options name.

    Args:
      base: the config to change.
      job: which job it is for; compare and tune also know --losses, --seeds and --trials.
      options: see `parse`; `--losses a,b` names recipes, which distill adds up.
    """
    options = dict(options)
    tree = json.loads(base.to_json())
    losses = options.pop("losses", None)
    if losses is not None:
        names = [name for word in losses for name in word.split(",") if name]
        _set_losses(tree, base, job, names)
    for name in ("seeds", "trials") if job not in ("compare", "tune") else ():
        if name in options:
            raise RequestError(f"--{name} is for `pcjax compare` and `pcjax tune` only.")
    for name in ("seeds", "trials") if job in ("compare", "tune") else ():
        if name in options:
            options[f"comparison.{name}"] = options.pop(name)
    for section in ("training", "teacher.training"):  # steps would stand in place of epochs
        if f"{section}.epochs" in options:
            options.setdefault(f"{section}.steps", ["None"])
    # Another model or loss does not keep the options of the one that it replaces.
    for name in sorted(options, key=lambda name: not name.endswith(".name")):
        _set(tree, name, options[name])
    return Config.from_json(json.dumps(tree))


def _set_losses(tree: dict[str, Any], base: Config, job: str, names: list[str]) -> None:
    """Set the losses in a config's JSON; they are checked with the other options, not before."""
    if job == "teach":
        raise RequestError("A teacher is trained with cross-entropy; leave --losses out.")
    if not names:
        raise RequestError("--losses names no loss; `pcjax list losses` prints them.")
    contenders = {contender.name: contender for contender in base.comparison.contenders}
    known = contenders if job in ("compare", "tune") else {}
    for name in names:
        _checks.require_name("loss", name, [*RECIPES, *known])
    if job in ("compare", "tune"):
        chosen = [known.get(name) or Contender(name, recipe(name)) for name in names]
        tree["comparison"]["contenders"] = _plain(chosen)
    else:
        tree["losses"] = _plain([loss for name in names for loss in recipe(name)])


def _plain(values: Sequence[Any]) -> list[Any]:
    """Turn dataclasses into JSON values."""
    return json.loads(json.dumps([dataclasses.asdict(value) for value in values]))


def _set(tree: dict[str, Any], name: str, words: list[str]) -> None:
    """Set one field of a config's JSON, found by its dotted path."""
    hint: Any = Config
    node: Any = tree
    parts = name.split(".")
    for place, part in enumerate(parts):
        where = ".".join(parts[: place + 1])
        hint = _section(hint, node)
        if dataclasses.is_dataclass(hint):
            hints = _fields.hints(typing.cast(type, hint))
            open_field = {Model: "options", Loss: "arguments"}.get(typing.cast(Any, hint))
            if part not in hints and open_field is not None:  # --student.widths 64
                hint, node = hints[open_field], node[open_field]
            else:
                siblings = [".".join([*parts[:place], field]) for field in hints]
                if part in _fields.hints(Training) and not place:
                    siblings = [f"training.{part}"]
                known = [f"--{sibling.replace('_', '-')}" for sibling in siblings]
                _checks.require_name("option", f"--{where.replace('_', '-')}", known)
        key: Any = part
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                raise RequestError(f"--{name}: there are {len(node)} entries, counted from 0.")
            key = int(part)
        elif not isinstance(node, dict):
            raise RequestError(f"--{name}: {'.'.join(parts[:place])} has no field {part!r}.")
        child = _child(hint, part)
        if place == len(parts) - 1:
            value = decode_words(child, words, name)
            fields: Any = node
            if part == "name" and hint in (Model, Loss) and fields["name"] != value:
                fields["options" if hint is Model else "arguments"] = {}
            fields[key] = value
            return
        if isinstance(node, dict) and key not in node:
            raise RequestError(f"--{name}: {where} is not set.")
        hint, node = child, node[key]


def _section(hint: Any, node: Any) -> Any:
    """Return the option of a union that a JSON value belongs to, as far as a path leads on."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint
    for option in typing.get_args(hint):
        if dataclasses.is_dataclass(option) and isinstance(node, dict):
            return option
        if typing.get_origin(option) is tuple and isinstance(node, list):
            return option
    return hint


def _child(hint: Any, part: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _fields.hints(typing.cast(type, hint))[part]
    arguments = typing.get_args(hint)
    return arguments[0] if typing.get_origin(hint) is tuple else arguments[1]


def decode_words(hint: Any, words: list[str], name: str) -> Any:
    """Turn the words behind an option into a JSON value of the field's type."""
    if not words:
        if hint is bool:
            return True
        kinds = [typing.get_origin(each) for each in (hint, *typing.get_args(hint))]
        if tuple not in kinds:
            raise RequestError(f"--{name} has no value; give one.")
    values = [_json(word) for word in words]
    flat = [_json(part) for word in words for part in word.split(",")]
    candidates = [flat] if typing.get_origin(hint) is tuple else []
    candidates += [*values, *words] if len(words) == 1 else []
    for candidate in (*candidates, flat, values, words):
        try:
            _fields.decode(hint, candidate, name)
            return candidate
        except RequestError:
            continue
    _fields.decode(hint, candidates[0] if candidates else values, name)  # raises
    raise AssertionError(name)


def _json(word: str) -> Any:
    if word in ("True", "False", "None"):
        return {"True": True, "False": False, "None": None}[word]
    try:
        return json.loads(word)
    except ValueError:
        return word


def one_word(name: str, words: list[str]) -> str:
    """Return the one word behind an option."""
    if len(words) != 1:
        raise RequestError(f"--{name.replace('_', '-')} has {len(words)} values; give one.")
    return words[0]


def decode_options(cls: Any, options: Options) -> Any:
    """Build a dataclass from options that are its fields; None takes no options."""
    hints = {} if cls is None else _fields.hints(cls)
    for name in options:
        if not hints:
            raise RequestError(f"--{name} is not an option here; remove it.")
        _checks.require_name("option", f"--{name}", [f"--{field}" for field in hints])
    values = {name: decode_words(hints[name], words, name) for name, words in options.items()}
    return None if cls is None else _fields.decode(cls, values)


def describe_fields() -> str:
    """List every field of a config with its default and its description."""
    lines = ["Every field with its default and its meaning:\n"]
    sections = {
        "data": config.Data(),
        "student": Config().student,
        "losses.0": Config().losses[0],
        "training": Config().training,
        "teacher": Config().teacher,
        "teacher.model": Config().teacher.model,
        "teacher.training": Config().teacher.training,
        "evaluation": config.Evaluation(),
        "comparison": config.Comparison(),
    }
    for section, value in sections.items():
        texts = field_descriptions(type(value))
        for field in dataclasses.fields(value):
            default = getattr(value, field.name)
            if dataclasses.is_dataclass(default):
                continue
            lines.append(f"  --{section}.{field.name.replace('_', '-')} [{default!r}]")
            if texts.get(field.name):
                lines.append(f"      {texts[field.name]}")
    lines.append("  --other-versions [False]")
    lines.append(f"      {field_descriptions(Config)['other_versions']}")
    return "\n".join(lines)


def field_descriptions(cls: type) -> dict[str, str]:
    """Return the strings that stand below a dataclass's fields in its source."""
    (tree,) = ast.parse(inspect.getsource(cls)).body
    body = typing.cast(ast.ClassDef, tree).body
    texts = {}
    for field, text in itertools.pairwise(body):
        if not isinstance(text, ast.Expr) or not isinstance(text.value, ast.Constant):
            continue
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            texts[field.target.id] = " ".join(str(text.value.value).split())
    return texts


def _list_losses(display: Display) -> None:
    rows = []
    for name in RECIPES:
        losses = recipe(name)
        labels = "labels" if any(loss.needs_labels for loss in losses) else ""
        rows.append([name, losses[0].kind, " + ".join(map(_describe_loss, losses)), labels])
    display.table("losses", ["name", "compares", "recipe", "needs"], rows)


def _describe_loss(loss: Loss) -> str:
    facts = [f"{name}={value}" for name, value in loss.arguments.items()]
    facts += [f"head={loss.head}"] * (loss.head != "none") + [f"bank={loss.bank}"] * bool(loss.bank)
    weight = "" if loss.weight == 1 else f"{loss.weight:g} "
    return f"{weight}{loss.name}" + (f" ({', '.join(facts)})" if facts else "")


def _list_models(display: Display) -> None:
    display.table(*models.describe())


def _list_sources(display: Display) -> None:
    rows = [[name, source.title] for name, source in all_sources().items()]
    display.table("sources", ["name", "examples"], rows)


def _list_teachers(display: Display) -> None:
    from pcjax.teachers import all_teachers  # loads JAX's models

    rows = [[name, source.title] for name, source in all_teachers().items()]
    display.table("teachers, as teacher.source", ["name", "teacher"], rows)


def _list_formats(display: Display) -> None:
    from pcjax.export.formats import all_formats

    rows = [[name, each.title] for name, each in all_formats().items()]
    display.table("formats of `pcjax export`", ["name", "export"], rows)


LISTS: Mapping[str, Callable[[Display], None]] = {
    "losses": _list_losses,
    "models": _list_models,
    "sources": _list_sources,
    "teachers": _list_teachers,
    "formats": _list_formats,
}
