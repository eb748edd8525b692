"""Whatever is asked for wrongly ends with status 2 and one line that names it; nothing is written, nothing trained."""

import dataclasses
import itertools
import json
import math
import os
import types
import typing

import numpy as np
import pytest
from children import everything_in

from pcjax import config
from pcjax.config import Comparison, Config, Contender, Loss, Model, Teacher
from pcjax.jobs.recipes import RECIPES
from pcjax.loss_registry import TERMS

pytestmark = pytest.mark.slow

WHOLE = dataclasses.replace(Config(), comparison=Comparison((Contender("a", (Loss("pkt"),)),)))
HUGE, NAN = 10**30, math.nan
# What is of no such type or out of any range, wherever a field of the type stands.
WRONG = {
    bool: (1, "x", [], {}),
    int: (-1, HUGE, 10**400, 1.5, NAN, True, "x", "", [], {"a": 1}),
    float: (-1.0, NAN, math.inf, 1e300, 1e-300, HUGE * 10**300, True, "x", [], {"start": 1}),
    str: (1, True, [], {}, ""),
    tuple: (1, "x", {}, [[]], [None], [1.5]),
    dict: (1, "x", [], [[]], {"nonsense": 1}, {"": None}),
    typing.Literal: (1, True, "", "nonsense", [], {}),
    Config: (1, "x", [], True, {"nonsense": 1}, [[[]]]),
}
LEGAL = (
    "data_dir",
    "other_dir",
)  # an empty name is what they are refused with, or the working directory


def fields(cls, path=()):
    """Every field of every section: its path and its type; of a tuple of sections, the first one's."""
    for name, hint in typing.get_type_hints(cls).items():
        yield (*path, name), hint
        inner = typing.get_args(hint)[:1] if typing.get_origin(hint) is tuple else (hint,)
        for one in inner:
            if dataclasses.is_dataclass(one):
                yield from fields(one, (*path, name) if one is hint else (*path, name, 0))


FIELDS = list(fields(Config))


def kind_of(hint):
    """What of WRONG a type is wrong by, and whether it may be None."""
    options = (
        typing.get_args(hint)
        if typing.get_origin(hint) in (types.UnionType, typing.Union)
        else (hint,)
    )
    optional = type(None) in options
    one = next(option for option in options if option is not type(None))
    if dataclasses.is_dataclass(one):
        return Config, optional
    return typing.get_origin(one) or one, optional


def wrong_values(path, hint):
    kind, optional = kind_of(hint)
    values = [value for value in WRONG[kind] if value != "" or path[-1] not in LEGAL]
    return values if optional else [*values, None]


def changed(path, value):
    """The whole config as a run stores it, with another value at that place."""
    stored = json.loads(WHOLE.to_json())
    at = stored
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return json.dumps({"job": "distill", "config": stored})


@pytest.fixture
def refused(command, tmp_path, tried, monkeypatch):
    """Runs what is wrong, and judges how that is said."""
    monkeypatch.chdir(tmp_path)

    def judge(fault, arguments, *names):
        before = everything_in(tmp_path)
        status, said, complaint = command(*arguments)
        got = f"{arguments}: {status} {complaint[:500]}"
        assert status == 2, got
        assert said == "", got
        assert complaint.startswith("pcjax: "), got
        assert complaint.count("\n") == 1, got
        assert complaint.isprintable() or complaint[:-1].isprintable(), got
        assert 20 < len(complaint) <= 2100, got
        assert "Traceback" not in complaint, got
        assert any(str(name) in complaint for name in names), f"{got}\nnames none of {names}"
        assert everything_in(tmp_path) == before, got
        tried(fault, "refused in one line, nothing written")

    return judge


@pytest.mark.parametrize("section", [field.name for field in dataclasses.fields(Config)])
def test_every_field_of_a_stored_config(section, refused, tmp_path):
    path = tmp_path / "config.json"
    for place, hint in FIELDS:
        if place[0] == section:
            for value in wrong_values(place, hint):
                path.write_text(changed(place, value))
                name = next(step for step in reversed(place) if isinstance(step, str))
                arguments = ("distill", path, "--workdir", tmp_path / "new")
                # Of a name that is unknown it is said what it would be the name of.
                known = {
                    "name": ("unknown model", "unknown loss", "contender"),
                    "corruptions": ("unknown corruption",),
                }
                refused(
                    "a field of a stored config",
                    arguments,
                    name,
                    *known.get(name, ()),
                    "nonsense",
                    "unknown field ",
                )


@pytest.mark.parametrize("section", [field.name for field in dataclasses.fields(Config)])
def test_every_field_on_the_command_line(section, refused, tmp_path):
    for place, hint in FIELDS:
        kind, _ = kind_of(hint)
        if (
            place[0] != section
            or kind in (Config, dict)
            or place[-1] in ("losses", "contenders")
            or "contenders" in place
        ):
            continue
        flag = "--" + ".".join(map(str, place)).replace("_", "-")
        for given in ((), ("nonsense",), ("",)) if kind is not str else ((),):
            if kind is tuple and given == () and place[-1] != "maps":
                continue  # none of them is a way to say so
            refused(
                "a field on the command line",
                ("distill", flag, *given, "--workdir", tmp_path / "new"),
                flag,
                place[-1],
                "unknown",
            )
        misspelt = ("distill", f"{flag}x", "1", "--workdir", tmp_path / "new")
        refused("a field on the command line", misspelt, f"{flag}x")


LIVE = {
    "student": Model("mlp", features=16, widths=(16,)),
    "teacher": Teacher(Model("mlp", features=16), live=True),
}


@pytest.mark.parametrize("name", [name for name, term in TERMS.items() if term.arguments])
def test_every_argument_of_every_loss(name, refused, tmp_path):
    recipes = itertools.chain.from_iterable(RECIPES.values())
    loss = next((loss for loss in recipes if loss.name == name), None) or Loss(name)
    if name == "crd":
        loss = dataclasses.replace(loss, arguments={"negatives": 8})
    loss = dataclasses.replace(loss, bank=min(loss.bank, 64))
    others = () if TERMS[name].alone else (Loss("hint"),)
    stored = json.loads(dataclasses.replace(Config(), losses=(loss, *others), **LIVE).to_json())
    path = tmp_path / "config.json"
    for argument in TERMS[name].arguments:
        below = {"start": -2.0, "end": -1.0}
        for value in (-1, "nonsense", below, NAN):
            arguments = stored["losses"][0]["arguments"] | {argument: value}
            config_ = stored | {
                "losses": [stored["losses"][0] | {"arguments": arguments}, *stored["losses"][1:]]
            }
            path.write_text(json.dumps({"job": "distill", "config": config_}))
            what = (argument, argument.removeprefix("teacher_"))
            refused(
                "an argument of a loss", ("distill", path, "--workdir", tmp_path / "new"), *what
            )


def test_texts_that_are_no_stored_config(refused, tmp_path):
    whole = changed(("data", "source"), "digits")
    rng = np.random.default_rng(0)
    texts = [whole[: int(cut)].encode() for cut in rng.integers(0, len(whole) - 1, 9)]
    texts += [
        b"\xff\xfe" + whole.encode("utf-16-le"),
        b"\x00" * 99,
        rng.bytes(5000),
        b"[" * 100_000,
        b'{"a":' * 50_000,
    ]
    texts += [
        b"3",
        b"null",
        b'"x"',
        b"[]",
        b"NaN",
        b"{}",
        b'{"job": "distill"}',
        b'{"job": 3, "config": {}}',
    ]
    for job in ("teach2", "", "../x", None, [], "__import__('os').system('true')"):
        texts.append(json.dumps({"job": job, "config": json.loads(WHOLE.to_json())}).encode())
    texts.append(whole.replace('"data":', '"data": {}, "data":', 1).encode())
    texts.append(b'{"job": "distill", "job": "distill", "config": {}}')
    texts.append(whole.encode() + b" " * config.LARGEST_FILE)
    texts.append(whole.replace('"digits"', '"' + "x" * 1_000_000 + '"').encode())
    run = tmp_path / "run"
    run.mkdir()
    (run / "result.json").write_text("{}")
    for text in texts:
        (run / "config.json").write_bytes(text)
        new = ("--workdir", tmp_path / "new")
        jobs = [
            ("evaluate", run),
            ("distill", run / "config.json", *new),
            ("report", run),
            ("embed", run),
        ]
        for arguments in jobs[:2] if len(text) > 100_000 else jobs:
            names = (run / "config.json", "unknown data source")
            refused("a damaged or forged config.json", arguments, *names)
        if len(text) <= 5000:
            refused("a damaged or forged config.json", ("distill", "--teacher.run", run, *new), run)
            refused(
                "a damaged or forged config.json",
                ("compare", "--losses", "pkt", "--workdir", run),
                run,
            )


def test_results_that_are_damaged(refused, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(changed(("data", "source"), "digits"))
    texts = [
        b"",
        b"3",
        b"null",
        b"[]",
        b'"x"',
        b"[[1, 2]]",
        b"{",
        b'{"teacher": 3}',
        b'{"student": []}',
        b"\xff\x00",
    ]
    texts += [b"[" * 100_000, b'{"versions": "1.0"}']
    for text in texts:
        (run / "result.json").write_bytes(text)
        for job in ("evaluate", "report"):
            refused("a damaged result.json", (job, run), run / "result.json")
    (run / "result.json").unlink()
    for text in (
        b"",
        b"3",
        b"null",
        b"[]",
        b"{",
        b'{"losses": 3}',
        b'{"losses": {}}',
        b'{"losses": {"a": 3}}',
        b'{"losses": {"a": {"summary": []}}}',
        b"[" * 100_000,
    ):
        (run / "comparison.json").write_bytes(text)
        refused("a damaged comparison.json", ("report", run), run / "comparison.json")


def test_commands_and_paths(refused, tmp_path):
    """Jobs, folders and files that are not what they are given for."""
    folder, text, empty = tmp_path / "folder", tmp_path / "text.txt", tmp_path / "empty.py"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    text.write_text("hello\n")
    empty.write_text("")
    binary = tmp_path / "binary.py"
    binary.write_bytes(b"\x00\xff\x80" * 300)
    for name, code in {
        "exits": "raise SystemExit(0)",
        "fails": "1 / 0",
        "none": "config = None",
        "class": "config = int",
    }.items():
        (tmp_path / f"{name}.py").write_text(code)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (piped := tmp_path / "piped").mkdir()
    os.mkfifo(piped / "config.json")
    (leading := tmp_path / "leading").symlink_to(tmp_path / "[x]")
    new = ("--workdir", tmp_path / "new")
    none = tmp_path / "none"
    configs = [
        none,
        f"{none}.py",
        f"{none}.json",
        folder,
        text,
        empty,
        binary,
        "",
        ".",
        "/",
        "/dev/null",
        tmp_path / "loop",
    ]
    configs += [tmp_path / f"{name}.py" for name in ("exits", "fails", "none", "class")] + [
        "x" * 300,
        f"{none}\n.py",
    ]
    for job in ("distill", "teach", "compare", "tune"):
        for path in configs:
            refused(
                "a config that is none",
                (job, path, *new),
                "config",
                str(path).split("\n")[0] or "config",
            )
        for workdir in (text, folder, text / "below", "/dev/null", "/proc/none"):
            losses = ("--losses", "pkt") if job in ("compare", "tune") else ()
            refused("a folder that cannot be", (job, *losses, "--workdir", workdir), workdir)
        for workdir in (
            "runs/[lr=1]",
            "a]b",
            "a\\b",
            "lr?",
            "lr*",
            leading,
            "gs://bucket/run",
            "s3://bucket/run",
            "not\udcffUTF",
        ):
            refused(
                "a folder at which nothing is saved",
                (job, *losses, "--workdir", workdir),
                "--workdir",
            )
        refused("a config that is a pipe", (job, *losses, "--workdir", piped), piped)
    for job in ("evaluate", "embed", "report"):
        for given in (
            (),
            (none,),
            (folder,),
            (text,),
            ("",),
            ("/",),
            (folder, folder),
            ("--nonsense",),
            (tmp_path / "loop",),
            (piped,),
        ):
            refused("what is no run", (job, *given), *(given[:1] or ("nothing",)), "run")
    for given in (
        ("--other",),
        ("--other", "nonsense"),
        ("--corruptions", "fog"),
        ("--other-dir", "x"),
        ("--throughput", "3"),
    ):
        refused("what evaluate is asked for", ("evaluate", none, *given), given[0], "run")
    for job in ("compare", "tune"):
        for given in (
            (),
            ("--losses",),
            ("--losses", ""),
            ("--losses", "nope"),
            ("--losses", "pkt,,pkt"),
            ("--losses", "pkt,pkt"),
        ):
            refused("losses to compare", (job, *given, *new), "loss", "contenders named pkt")
        for flag in ("--seeds", "--trials"):
            for value in ("0", "-1", "many", "", "1.5", str(HUGE)):
                refused("how many", (job, "--losses", "pkt", flag, value, *new), flag.strip("-"))
    for place in ("9", "-1", "x", ""):
        flag = f"--losses.{place}.arguments.power"
        refused("an argument on the command line", ("distill", flag, "2", *new), flag)
    for value in ("nan", "inf", "-1", "", "x", "1e999", "1e-300", str(HUGE * 10**300)):
        refused(
            "an argument on the command line",
            ("distill", "--losses.0.arguments.power", value, *new),
            "power",
        )
    for word in (
        "Distill",
        "distill ",
        "",
        "--nonsense",
        "rm",
        "../distill",
        "evaluate\x00",
        "-",
        "--",
    ):
        refused("an unknown job", (word,), "unknown job", "job")
    for source in (
        "",
        "x",
        "arrays",
        "arrays:",
        "tfds:",
        "tfds:/",
        "tfds:../x",
        f"arrays:{none}",
        f"arrays:{folder}",
        "arrays:/dev/zero",
    ):
        refused(
            "a source",
            ("distill", "--data.source", source, *new),
            source or "source",
            "no data set",
            source.partition(":")[2],
        )
    for flag in ("--teacher.run", "--teacher.features"):
        for path in (none, folder, text, "", "/dev/zero", tmp_path / "loop", "/"):
            refused("a teacher", ("distill", flag, path, *new), path or "teacher", flag[2:])
