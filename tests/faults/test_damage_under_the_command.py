"""What the command does with a run whose checkpoints were damaged, or are of another run: one child process a try.

PCJAX_FAULTS says how often; one try of each unless it does.
"""

import json
import os
import random
import shutil
import signal

import pytest
from children import (
    SMALL,
    change_manifest,
    environment,
    everything_in,
    finish,
    outcome_of,
    start,
    steps_saved,
    wait_until,
)
from counts import tries

from pcjax.evaluation.evaluate import versions
from pcjax.training.checkpoint import FORMAT

pytestmark = pytest.mark.slow

TRIES = tries(2)
CHECKPOINTS = "checkpoints"


@pytest.fixture(scope="module")
def whole(unstopped):
    return outcome_of(unstopped[0])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was told to stop with some checkpoints saved."""
    for _ in range(3):  # on a busy machine it may be told too late
        run = tmp_path_factory.mktemp("stopped") / "run"
        process = start("distill", *SMALL, "--workdir", run)
        wait_until(
            lambda run=run: len(steps_saved(run)) >= 2 and steps_saved(run)[-1] >= 12,
            process,
            every=0.01,
        )
        process.send_signal(signal.SIGTERM)
        if finish(process)[0] == 143:
            return run
    return pytest.fail("three runs could not be stopped in time")


def flip(path, random_):
    held = bytearray(path.read_bytes())
    held[random_.randrange(len(held))] ^= 1 << random_.randrange(8)
    path.write_bytes(held)


def cut(path, random_):
    os.truncate(path, random_.randrange(path.stat().st_size))


def swap(path, random_):
    other = random_.choice(
        [file for file in path.parents[1].rglob("*") if file.is_file() and file != path]
    )
    held = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(held)


DAMAGES = {
    "a flipped bit": flip,
    "a truncated file": cut,
    "an empty file": lambda path, _: path.write_bytes(b""),
    "a deleted file": lambda path, _: path.unlink(),
    "two files swapped": swap,
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_run_ends_as_if_it_had_not_been(
    how, whole, stopped, tmp_path, tried
):
    for place in range(TRIES):
        random_ = random.Random(f"{how} {place}")  # noqa: S311
        run = tmp_path / f"run{place}"
        shutil.copytree(stopped, run)
        newest = steps_saved(run)[-1]
        files = [path for path in (run / CHECKPOINTS / f"{newest}").rglob("*") if path.is_file()]
        # Every other time in what holds most; the marks and small files are the rest.
        largest = max(files, key=lambda path: path.stat().st_size)
        path = (
            largest
            if place % 2 == 0
            else random_.choice([path for path in files if path.stat().st_size])
        )
        DAMAGES[how](path, random_)
        status, said, complaint = finish(start("distill", *SMALL, "--workdir", run))
        assert (status, complaint) == (0, ""), (path, said)
        named = (
            f"checkpoint {newest} is unsound" in said
            or f"checkpoint {newest} was never finished" in said
        )
        if named:
            assert f"going on after step {newest} of" not in said
        assert outcome_of(run) == whole, path
        tried(
            f"{how} in the newest checkpoint, then the command",
            "named, " * named + "the end bit-identical",
        )


# A field of the config, another value, and how the command line and the one that was asked for before say it.
OTHERS = {
    "seed": ("training.seed", 1, "0"),
    "batch": ("training.batch", 32, "64"),
    "number of steps": ("training.steps", 61, "60"),
    "shape": ("student.widths", [9], "8"),
    "tree": ("student.widths", [8, 8], "8"),
    "optimiser": ("training.optimiser", "sgd", "adamw"),
    "data set": ("data.unseen", 2, "0"),
    "dtype": ("training.compute", "bfloat16", "float32"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_run_is_refused_by_name(what, stopped, tmp_path, command, tried):
    """By the config that was stored; and where that was changed too, by what every checkpoint says of itself."""
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    (field, value, own), before = OTHERS[what], steps_saved(run)
    words = [str(word) for word in (value if isinstance(value, list) else [value])]
    asked = ["distill", *SMALL, f"--{field}", *words, "--workdir", run]
    status, _, complaint = command(*asked)
    assert (status, complaint.count("\n")) == (2, 1), complaint
    assert all(part in complaint for part in (field, own, *words)), complaint
    stored = json.loads((run / "config.json").read_text())
    section, name = field.split(".")
    stored["config"][section][name] = value
    (run / "config.json").write_text(json.dumps(stored))
    status, _, complaint = command(*asked)
    assert (status, complaint.count("\n")) == (2, 1), complaint
    assert "checkpoint" in complaint
    assert " was made with " in complaint
    assert steps_saved(run) == before
    tried(f"another {what}, then the command", "refused, by name", 2)


def test_other_versions_are_refused_by_the_command(stopped, whole, tmp_path, tried):
    """As if the environment had changed under a run; told to, it goes on and says so.

    The teacher's training has ended: it is taken as the one of another run would be.
    """
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    step, taught = steps_saved(run)[-1], run / "teacher"
    now = versions()
    for changed, at in ((run, step), (taught, steps_saved(taught)[-1])):
        change_manifest(changed, at, versions=now | {"jax": "0.9.9", "optax": "0.1"})
    asked = ["distill", *SMALL, "--workdir", run]
    before = everything_in(run)
    status, _, complaint = finish(start(*asked))
    assert (status, complaint.count("\n")) == (2, 1), complaint
    differs = (
        f"was made with jax 0.9.9, optax 0.1, this run has jax {now['jax']}, optax {now['optax']}: "
    )
    assert f"checkpoint {step} in {run / CHECKPOINTS} {differs}install what made it" in complaint
    assert everything_in(run) == before
    status, said, complaint = finish(start(*asked, "--other-versions", "True"))
    assert (status, complaint) == (0, "")
    assert f"going on after step {step} of" in said
    assert said.replace("\n", " ").count("what follows may differ in last digits") == 2
    assert outcome_of(run) == whole
    assert json.loads((run / "config.json").read_text())["config"]["other_versions"] is False
    status, said, complaint = finish(start(*asked))
    assert (status, complaint) == (0, "")
    assert (
        said.replace("\n", " ").count("what follows may differ in last digits") == 1
    )  # of the teacher
    assert outcome_of(run) == whole
    tried(
        "other versions, then the command", "refused, by name; gone on with where that is asked for"
    )


def test_another_format_is_refused_by_the_command(stopped, tmp_path, tried):
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    change_manifest(run, steps_saved(run)[-1], format=FORMAT + 1)
    status, _, complaint = finish(start("distill", *SMALL, "--workdir", run, env=environment()))
    assert (status, complaint.count("\n")) == (2, 1), complaint
    assert f"was made with format {FORMAT + 1}, this run has {FORMAT}" in complaint
    tried("another format of checkpoints, then the command", "refused, by name")
