"""A wrong request ends with status 2 and one line that names it; nothing is written or trained."""

import dataclasses
import json
import math
import os
import types
import typing

import numpy as np
import pytest
from children import everything_in

from pcjax import config
from pcjax.config import Comparison, Config, Contender, Loss, Model, Teacher, recipe
from pcjax.losses.registry import LOSSES, RECIPES

pytestmark = [pytest.mark.gate, pytest.mark.bad_input]

WHOLE = dataclasses.replace(Config(), comparison=Comparison((Contender("a", (Loss("pkt"),)),)))
HUGE, NAN = 10**30, math.nan
# Values that are not of a type, or out of any range.
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
LEGAL = ("data_dir", "other_dir")  # an empty name is the working directory


def fields(cls, path=()):
    """Yield every field of every section, its path and its type; of tuples the first entry's."""
    for name, hint in typing.get_type_hints(cls).items():
        yield (*path, name), hint
        inner = typing.get_args(hint)[:1] if typing.get_origin(hint) is tuple else (hint,)
        for each in inner:
            if dataclasses.is_dataclass(each):
                yield from fields(each, (*path, name) if each is hint else (*path, name, 0))


FIELDS = list(fields(Config))
SECTIONS = [field.name for field in dataclasses.fields(Config)]


def kind_of(hint):
    """Return the key of WRONG for a type, and whether the type allows None."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    options = typing.get_args(hint) if union else (hint,)
    first = next(option for option in options if option is not type(None))
    kind = Config if dataclasses.is_dataclass(first) else typing.get_origin(first) or first
    return kind, type(None) in options


def stored(path, value):
    """Return the text of a run's config.json with another value at a path."""
    tree = json.loads(WHOLE.to_json())
    node = tree
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    return json.dumps({"job": "distill", "config": tree})


@pytest.fixture
def refused(command, tmp_path, tried, monkeypatch):
    """Run a wrong command, and check how it is refused."""
    monkeypatch.chdir(tmp_path)

    def check(fault, words, *names):
        before = everything_in(tmp_path)
        status, output, complaint = command(*words)
        shown = f"{words}: {status} {complaint[:500]}"
        assert (status, output, complaint.count("\n")) == (2, "", 1), shown
        assert complaint.startswith("pcjax: "), shown
        assert complaint[:-1].isprintable(), shown
        assert 20 < len(complaint) <= 2100, shown
        assert "Traceback" not in complaint, shown
        assert any(str(name) in complaint for name in names), f"{shown}\nnames none of {names}"
        assert everything_in(tmp_path) == before, shown
        tried(fault, "refused in one line, nothing written")

    return check


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_of_a_stored_config(section, refused, tmp_path):
    path = tmp_path / "config.json"
    words = ("distill", path, "--workdir", tmp_path / "new")
    for place, hint in FIELDS:
        if place[0] != section:
            continue
        kind, optional = kind_of(hint)
        name = next(step for step in reversed(place) if isinstance(step, str))
        values = [value for value in WRONG[kind] if value != "" or name not in LEGAL]
        for value in values if optional else [*values, None]:
            path.write_text(stored(place, value))
            refused("a field of a stored config", words, name, "nonsense", "unknown", "contender")


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_on_the_command_line(section, refused, tmp_path):
    new = ("--workdir", tmp_path / "new")
    for place, hint in FIELDS:
        kind, _ = kind_of(hint)
        open_ends = ("losses", "contenders", "options", "arguments")
        if place[0] != section or kind is Config or {*place} & {*open_ends}:
            continue
        option = "--" + ".".join(map(str, place)).replace("_", "-")
        refused("an option", ("distill", f"{option}x", "1", *new), f"{option}x", f"{place[-1]}x")
        if kind not in (bool, tuple):
            refused("an option", ("distill", option, *new), place[-1])
        for value in ("nonsense", "") if kind not in (str, tuple) else ():
            refused("an option", ("distill", option, value, *new), place[-1])


@pytest.mark.parametrize("name", [name for name, spec in LOSSES.items() if spec.arguments])
def test_every_argument_of_every_loss(name, refused, tmp_path):
    loss = recipe(name)[0] if name in RECIPES else Loss(name)
    others = () if LOSSES[name].alone else (Loss("hint"),)
    losses = (dataclasses.replace(loss, bank=min(loss.bank, 64)), *others)
    model = Model("protopnet" if LOSSES[name].prototypes else "mlp")
    live = {"student": model, "teacher": Teacher(model, live=True)}
    tree = json.loads(dataclasses.replace(Config(), losses=losses, **live).to_json())
    path, words = tmp_path / "config.json", ("--workdir", tmp_path / "new")
    for argument in LOSSES[name].arguments:
        for value in (-1, "nonsense", {"start": -2.0, "end": -1.0}, NAN):
            arguments = tree["losses"][0]["arguments"] | {argument: value}
            changed = [tree["losses"][0] | {"arguments": arguments}, *tree["losses"][1:]]
            path.write_text(json.dumps({"job": "distill", "config": tree | {"losses": changed}}))
            known = (argument, argument.removeprefix("teacher_"))
            refused("an argument of a loss", ("distill", path, *words), *known)


def test_texts_that_are_no_stored_config(refused, tmp_path):
    whole = stored(("data", "source"), "digits")
    rng = np.random.default_rng(0)
    texts = [whole[: int(cut)].encode() for cut in rng.integers(0, len(whole) - 1, 9)]
    texts += [b"\xff\xfe" + whole.encode("utf-16-le"), b"\x00" * 99, rng.bytes(5000)]
    texts += [b"[" * 100_000, b'{"a":' * 50_000]
    texts += [b"3", b"null", b'"x"', b"[]", b"NaN", b"{}", b'{"job": "distill"}']
    texts += [b'{"job": 3, "config": {}}', b'{"job": "distill", "job": "distill", "config": {}}']
    for job in ("teach2", "", "../x", None, [], "__import__('os').system('true')"):
        texts.append(json.dumps({"job": job, "config": json.loads(WHOLE.to_json())}).encode())
    texts.append(whole.replace('"data":', '"data": {}, "data":', 1).encode())
    texts.append(whole.encode() + b" " * config.MAX_CONFIG_BYTES)
    texts.append(whole.replace('"digits"', '"' + "x" * 1_000_000 + '"').encode())
    run = tmp_path / "run"
    run.mkdir()
    path = run / "config.json"
    new = ("--workdir", tmp_path / "new")
    for text in texts:
        path.write_bytes(text)
        jobs = [("distill", path, *new), ("evaluate", run), ("report", run), ("embed", run)]
        jobs += [("distill", "--teacher.run", run, *new), ("compare", "--losses", "pkt")]
        jobs[-1] += ("--workdir", run)
        for words in jobs[:1] if len(text) > 100_000 else jobs:
            refused("a damaged or forged config.json", words, run, "unknown data source")


def test_results_that_are_damaged(refused, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(stored(("data", "source"), "digits"))
    texts = (b"", b"3", b"null", b"[]", b'"x"', b"{", b'{"teacher": 3}', b"\xff\x00", b"[" * 10**5)
    for text in texts:
        (run / "result.json").write_bytes(text)
        for job in ("evaluate", "report", "embed", "export"):
            refused("a damaged result.json", (job, run), run / "result.json")
    (run / "config.json").write_text(
        (run / "config.json").read_text().replace("distill", "compare")
    )
    for text in texts:
        (run / "comparison.json").write_bytes(text)
        refused("a damaged comparison.json", ("report", run), run)


@pytest.fixture
def places(tmp_path):
    """Make files and folders that are not what commands expect."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    (tmp_path / "text.txt").write_text("hello\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "binary.py").write_bytes(b"\x00\xff\x80" * 300)
    codes = {"exits": "raise SystemExit(0)", "fails": "1 / 0", "none": "config = None"}
    for name, code in codes.items():
        (tmp_path / f"{name}.py").write_text(code)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "piped").mkdir()
    os.mkfifo(tmp_path / "piped" / "config.json")
    (tmp_path / "leading").symlink_to(tmp_path / "[x]")
    return tmp_path


def test_configs_and_folders(places, refused):
    none, folder, text = places / "nothing", places / "folder", places / "text.txt"
    new = ("--workdir", places / "new")
    configs = [none, f"{none}.py", f"{none}.json", folder, text, "", ".", "/", "/dev/null"]
    configs += [places / "loop", f"{none}\n.py"]
    configs += [places / f"{name}.py" for name in ("empty", "binary", "exits", "fails", "none")]
    for job in ("distill", "teach", "compare", "tune"):
        losses = ("--losses", "pkt") if job in ("compare", "tune") else ()
        for path in configs:
            refused("a config that is none", (job, path, *new), "config", str(path).split("\n")[0])
        for workdir in (text, folder, text / "below", "/dev/null", "/proc/none"):
            words = (job, *losses, "--workdir", workdir)
            refused("a folder that cannot be", words, workdir, "/proc", text)
        names = ("runs/[lr=1]", "a]b", "a\\b", "lr?", "lr*", "gs://bucket/run", "not\udcffUTF")
        for workdir in (*names, places / "leading"):
            words = (job, *losses, "--workdir", workdir)
            refused("a folder at which nothing is saved", words, "--workdir")
        words = (job, *losses, "--workdir", places / "piped")
        refused("a config that is a pipe", words, places / "piped")


def test_runs_and_options(places, refused):
    none, folder, text = places / "nothing", places / "folder", places / "text.txt"
    new = ("--workdir", places / "new")
    for job in ("evaluate", "embed", "report", "export"):
        for given in ((), none, folder, text, "", "/", "--nonsense", places / "loop"):
            words = given if given == () else (given,)
            refused("something that is no run", (job, *words), given or "nothing", "run")
    for given in (("--other",), ("--other", "x"), ("--corruptions", "fog"), ("--throughput", "3")):
        refused("an evaluation", ("evaluate", none, *given), given[0], given[0][2:], "run")
    for job in ("compare", "tune"):
        for given in (
            (),
            ("--losses",),
            ("--losses", ""),
            ("--losses", "nope"),
            ("--losses", "a,a"),
        ):
            refused("losses to compare", (job, *given, *new), "loss")
        for option in ("--seeds", "--trials"):
            for value in ("0", "-1", "many", "", "1.5", str(HUGE)):
                words = (job, "--losses", "pkt", option, value, *new)
                refused("a number of runs", words, option.strip("-"))
    for place in ("9", "-1", "x", ""):
        words = ("distill", f"--losses.{place}.arguments.power", "2", *new)
        refused("an argument on the command line", words, "losses.")
    for value in ("nan", "inf", "-1", "", "x", "1e999", "1e-300", str(HUGE * 10**300)):
        words = ("distill", "--losses.0.arguments.power", value, *new)
        refused("an argument on the command line", words, "power")
    for word in ("Distill", "distill ", "", "--nonsense", "rm", "../distill", "evaluate\x00", "-"):
        refused("an unknown job", (word,), "job")


def test_sources_and_teachers(places, refused):
    none, folder, text = places / "nothing", places / "folder", places / "text.txt"
    new = ("--workdir", places / "new")
    sources = ["", "x", "arrays", "arrays:", "tfds:", "tfds:/", "tfds:../x", "arrays:/dev/zero"]
    for source in (*sources, f"arrays:{none}", f"arrays:{folder}"):
        words = ("distill", "--data.source", source, *new)
        refused("a source", words, source or "source", "data", source.partition(":")[2])
    for option in ("--teacher.run", "--teacher.features"):
        for path in (none, folder, text, "", "/dev/zero", places / "loop", "/"):
            refused("a teacher", ("distill", option, path, *new), path or "teacher", option[2:])
