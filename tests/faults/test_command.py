"""The command as a child process: killed, told to stop, trained on what is not finite, left hanging.

PCJAX_FAULTS says how often; one try of each unless it does.
"""

import io
import json
import os
import random
import shlex
import shutil
import signal
import sys
import time

import children
import numpy as np
import pytest
from children import SMALL, STEPS, environment, outcome_of, start, steps_saved, wait_until
from counts import tries

from pcjax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.slow

KILLS, SIGNALS = tries(50), tries(20)
IMPORTS = 2.0  # seconds, before which nothing happens that could be interrupted


def finish(process):
    status, said, complaint = children.finish(process)
    assert "Traceback" not in complaint, complaint
    return status, said, complaint


def test_killed_at_random_moments(unstopped, tmp_path, tried):
    """Each run is killed some times, and then goes on to its end."""
    random_ = random.Random(0)  # noqa: S311
    folder, killed, longest = tmp_path / "run0", 0, unstopped[1] - IMPORTS
    while killed < KILLS:
        metrics = folder / "metrics.jsonl"
        before = metrics.stat().st_mtime_ns if metrics.exists() else None
        process = start("distill", *SMALL, "--workdir", folder)
        # Every other time as soon as this sitting has written something, which is when saves are under way.
        if random_.random() < 0.5:
            assert wait_until(
                lambda m=metrics, b=before: m.exists() and m.stat().st_mtime_ns != b,
                process,
                every=0.01,
            )
            time.sleep(random_.random())
        else:
            time.sleep(IMPORTS + random_.random() * max(longest, 1))
        alive = process.poll() is None
        longest *= (
            1.0 if alive else 0.8
        )  # the machine had more to do when it was measured, or to compile
        process.kill()
        process.communicate()
        killed += alive
        if alive:
            tried("kill -9 at random moments", "gone on from")
        if not alive or random_.random() < 0.3 or killed == KILLS:
            assert finish(start("distill", *SMALL, "--workdir", folder))[0] == 0
            assert outcome_of(folder) == outcome_of(unstopped[0])
            tried("runs that were killed, to the end", "bit-identical")
            folder = tmp_path / f"run{killed}{alive}"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_told_to_stop_at_random_moments(unstopped, tmp_path, tried, number, status):
    random_ = random.Random(int(number))  # noqa: S311
    stopped, place, longest = 0, 0, unstopped[1] - IMPORTS
    while stopped < SIGNALS:
        folder, wait = tmp_path / f"run{place}", IMPORTS + random_.random() * max(longest, 1)
        place += 1
        process = start("distill", *SMALL, "--workdir", folder)
        time.sleep(wait)
        process.send_signal(number)
        found, _, complaint = finish(process)
        assert found in (0, status), complaint
        assert complaint.count("\n") == (found != 0)
        if found == status:
            assert finish(start("distill", *SMALL, "--workdir", folder))[0] == 0
            stopped += 1
            tried(f"{number.name} at random moments", "one line, then resumed bit-identical")
        else:
            longest *= 0.8
        assert outcome_of(folder) == outcome_of(unstopped[0])


@pytest.mark.parametrize(
    ("job", "written"), [("evaluate", "result.json"), ("embed", "features.npz")]
)
def test_told_to_stop_while_it_looks_at_a_run(unstopped, tried, job, written):
    assert finish(start(job, unstopped[0]))[0] == 0
    began = time.monotonic()
    assert finish(start(job, unstopped[0]))[0] == 0
    takes, stopped = time.monotonic() - began, 0
    before, random_ = (unstopped[0] / written).read_bytes(), random.Random(0)  # noqa: S311
    for _ in range(5 * SIGNALS):
        if stopped == SIGNALS:
            break
        process = start(job, unstopped[0])
        time.sleep(takes * random_.uniform(0.5, 0.9))
        process.send_signal(signal.SIGTERM)
        status, _, complaint = finish(process)
        assert status in (0, 143)
        stopped += status == 143
        takes *= 0.8 if status == 0 else 1.0  # the machine had more to do when it was measured
        assert (
            status == 0
            or f"stopped by SIGTERM; what was saved stays; to go on: pcjax {job}" in complaint
        )
        if job == "evaluate":
            assert json.loads((unstopped[0] / written).read_text()) == json.loads(before)
        else:
            assert same_arrays(unstopped[0] / written, io.BytesIO(before))
        tried(f"SIGTERM while it is to {job}", "one line" if status else "done before")
    assert stopped == SIGNALS


@pytest.fixture(scope="module")
def much_to_judge(tmp_path_factory):
    """Arguments of a run that judges a hundred batches after every other step, and the end of one."""
    folder = tmp_path_factory.mktemp("much")
    rng = np.random.default_rng(0)
    for part, n in (("train", 300), ("validation", 1000), ("test", 60)):
        np.savez(
            folder / f"{part}.npz", x=rng.normal(size=(n, 8)).astype(np.float32), y=np.arange(n) % 3
        )
    teacher = ["--teacher.training.save-every", "4", "--teacher.training.steps", "4"]
    asked = [
        *SMALL,
        *teacher,
        "--training.steps",
        "4",
        "--training.save-every",
        "2",
        "--evaluation.batch",
        "4",
    ]
    asked += ["--data.source", f"arrays:{folder}", "--training.parallel", "pmap"]
    children.pcjax("distill", *asked, "--workdir", folder / "whole")
    return asked, outcome_of(folder / "whole", 4)


@pytest.mark.parametrize("processes", [1, 2])
def test_told_to_stop_while_a_checkpoint_is_judged(processes, much_to_judge, tmp_path, tried):
    """It saves at once, judges when it goes on, and ends as if nothing had been."""
    (asked, whole), run = much_to_judge, tmp_path / "run"
    metrics = run / "metrics.jsonl"

    def began():
        asked_ = [*asked, "--workdir", run]
        if processes == 1:
            return [start("distill", *asked_)]
        return children.start_two("distill", *asked_, JAX_NUM_CPU_DEVICES=1)

    told = began()
    assert wait_until(lambda: metrics.exists() and metrics.stat().st_size > 0, told[0], every=0.01)
    told[-1].send_signal(signal.SIGTERM)
    for process in told:
        status, said, complaint = children.finish(process)
        assert status == 143, (said, complaint)
        assert "stopped by SIGTERM after step 2, and saved" in complaint
    assert [line for line in metrics.read_text().splitlines() if "validation" in line] == []
    assert steps_saved(run) == [2]
    assert [children.finish(process)[0] for process in began()] == [0] * processes
    if processes == 1:
        assert outcome_of(run, 4) == whole
    names = [sorted(json.loads(line)) for line in metrics.read_text().splitlines()]
    assert [sorted({*line} - {"steps_per_second"}) for line in names] == [
        sorted(line) for line in whole[0]
    ]
    tried("SIGTERM while a checkpoint is judged", f"{processes}: saved at once, judged later")


@pytest.mark.parametrize(
    ("raised", "told"), [("Event loop is closed", False), ("something else", True)]
)
def test_what_a_stopped_read_says_late_is_not_told(raised, told):
    """It may end when the command has said its last line, and while the interpreter takes itself down."""
    late = "import atexit, sys; from pcjax import cli\n"
    late += f"class Late:\n    def __del__(self): raise RuntimeError({raised!r})\n"
    late += "left = Late(); atexit.register(lambda: globals().pop('left'))\n"
    late += "sys.argv = ['pcjax', '--version']; cli.command()\n"
    status, _, complaint = children.finish(start(program=(sys.executable, "-c", late)))
    assert status == 0
    assert (raised in complaint) == told == bool(complaint)


def test_the_same_command_twice_at_once(unstopped, tmp_path, tried):
    run = tmp_path / "run"
    first = start("distill", *SMALL, "--workdir", run)
    assert wait_until(lambda: steps_saved(run), first, every=0.01)
    first.send_signal(signal.SIGSTOP)  # or it may end before the second one comes so far
    status, said, complaint = finish(start("distill", *SMALL, "--workdir", run))
    first.send_signal(signal.SIGCONT)
    assert finish(first)[0] == 0
    assert (status, complaint.count("\n")) == (2, 1), (said, complaint)
    assert (
        f"another command is at work in {run}: wait for its end, or choose another --workdir"
        in complaint
    )
    assert outcome_of(run) == outcome_of(unstopped[0])
    tried("the same command twice at once", "the second one refused, the first one undisturbed")


@pytest.mark.parametrize("redirected", ["2>&-", "<&- >&- 2>&-"])
def test_output_that_was_closed(redirected, unstopped, tried):
    again = shlex.join([children.PCJAX, "evaluate", str(unstopped[0])])
    status, said, complaint = finish(start("-c", f"{again} {redirected}", program=("/bin/sh",)))
    assert (status, complaint) == (0, "")
    assert ("student after" in said) == (redirected == "2>&-")
    tried("output that was closed", "done, silent")


def test_output_that_cannot_say_every_character(unstopped, tried):
    status, said, complaint = finish(
        start("evaluate", unstopped[0], env=environment(PYTHONIOENCODING="ascii"))
    )
    assert (status, complaint) == (0, "")
    assert "1.000 ? 0.000" in said
    tried("output that cannot say every character", "said without")


def same_arrays(one, other):
    with np.load(one) as found, np.load(other) as expected:
        return found.files == expected.files and all(
            np.array_equal(found[name], expected[name]) for name in found
        )


def test_output_that_nobody_reads(tmp_path, tried):
    process = start("distill", *SMALL, "--workdir", tmp_path / "run")
    process.stdout.close()
    assert process.wait(timeout=200) == 128 + signal.SIGPIPE
    assert process.stderr.read() == ""
    tried("standard output that nobody reads", "status 141, silent")


def test_output_that_finds_no_room(tmp_path, tried):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        process = start("distill", *SMALL, "--workdir", tmp_path / "run", stdout=full)
        status, _, complaint = finish(process)
    assert (status, complaint) == (
        1,
        "pcjax: all is done, but could not all be told: No space left on device\n",
    )
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == STEPS
    tried("standard output on a full disk", "trained to the end, status 1, one line")


def test_steps_that_are_never_finite(tmp_path, tried):
    folder = tmp_path / "run"
    wild = [
        "--training.optimiser",
        "sgd",
        "--training.learning-rate",
        "1e37",
        "--training.bad-steps",
        "5",
    ]
    wild += ["--training.schedule", "constant", "--training.warmup", "0.0"]
    status, said, complaint = finish(start("distill", *SMALL, *wild, "--workdir", folder))
    assert (status, complaint.count("\n")) == (1, 1)
    assert "5 steps in a row (training.bad_steps)" in complaint
    assert "was not finite and was not taken; its examples (" in said
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(
        len(set(line["skipped_examples"])) == 64 for line in lines if "skipped_examples" in line
    )
    checkpoints = Checkpoints(folder / "checkpoints", {}, writable=False)
    arrays, _ = checkpoints.arrays(checkpoints.latest)
    checkpoints.close()
    assert all(np.all(np.isfinite(array)) for array in arrays.values())
    # As if it had been killed before that save, and then as nothing of it has changed.
    before = steps_saved(folder)
    shutil.rmtree(folder / "checkpoints" / str(before[-1]))
    for _ in range(2):
        status, _, complaint = finish(start("distill", *SMALL, *wild, "--workdir", folder))
        assert status == 1
        assert "5 steps in a row (training.bad_steps)" in complaint
        assert before[-1] <= steps_saved(folder)[-1] <= before[-1] + 2
        assert not (folder / "result.json").exists()
    tried("steps that are never finite", "stopped, parameters finite; again and again")


def test_a_data_set_of_one_example(tmp_path, tried):
    images = np.tile(np.arange(64, dtype=np.uint8).reshape(8, 8, 1), (300, 1, 1, 1))
    np.savez(tmp_path / "one.npz", images=images, labels=np.arange(300) % 3)
    asked = [*SMALL, "--training.bad-steps", "3", "--teacher.training.bad-steps", "3"]
    asked += ["--data.source", f"arrays:{tmp_path / 'one.npz'}", "--workdir", tmp_path / "run"]
    status, said, complaint = finish(start("distill", *asked))
    assert (status, complaint.count("\n")) == (1, 1), (said, complaint)
    assert "3 steps in a row (training.bad_steps) were not taken" in complaint
    assert "had examples that are all alike and was not taken; its examples (" in said
    # So too where the training ends before there are so many.
    few = ("--teacher.training.bad-steps", "9", "--teacher.training.steps", "4")
    for _ in range(2):
        status, said, complaint = finish(start("distill", *asked[:-1], tmp_path / "few", *few))
        assert (status, complaint.count("\n")) == (1, 1), (said, complaint)
        assert "teacher: 4 of 4 steps were not taken" in complaint
    tried("batches of one example", "stopped, named", 2)


def test_a_step_that_never_ends(tmp_path, tried):
    process = start(
        "distill", *SMALL, "--training.watchdog-seconds", "0.01", "--workdir", tmp_path / "run"
    )
    _, complaint = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "Thread 0x" in complaint
    assert "student: step 1 has not ended for 0.01 s (training.watchdog_seconds)" in complaint
    tried("a step that never ends", "ended with the stacks of all threads")


def test_a_batch_that_never_ends_while_a_run_is_looked_at(unstopped, tmp_path, tried):
    """Where there are several devices, half an hour is waited, and here less; where there is one, without end."""
    impatient = (
        "from pcjax import cli; from pcjax.training import stopping; stopping.HANGS_AFTER = 0.01\n"
    )
    impatient += f"cli.main(['embed', {str(unstopped[0])!r}])\n"
    of_one, of_two = (
        finish(
            start(
                program=(sys.executable, "-c", impatient),
                env=environment(JAX_NUM_CPU_DEVICES=devices),
            )
        )
        for devices in (1, 2)
    )
    assert of_one[0] == 0
    status, _, complaint = of_two
    assert status == 1
    assert "Thread 0x" in complaint
    assert "what a model says: batch 1 has not ended for 0.01 s" in complaint
    tried("a batch that never ends while a run is embedded", "ended with the stacks of all threads")


SUSPENDED = """
import time
from pcjax.training.stopping import Watchdog

with Watchdog("work", 2.0):
    print("begun", flush=True)
    for _ in range(4):
        time.sleep(0.3)
"""


def test_what_was_suspended_goes_on(tried):
    process = start(program=(sys.executable, "-c", SUSPENDED))
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    assert process.poll() is None
    process.send_signal(signal.SIGCONT)
    assert finish(process) == (0, "", "")
    tried("a process suspended for longer than a step may take", "goes on")


def test_a_signal_that_comes_within_c_code(monkeypatch, command, tried):
    """NumPy's calls of Python functions make a SystemError of what a signal raises in them."""
    from pcjax import cli

    def run(job, given):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except BaseException as stopped:
            raise SystemError("returned a result with an exception set") from stopped

    monkeypatch.setattr(cli, "_run", run)
    status, _, complaint = command("evaluate", "somewhere")
    assert (status, complaint) == (
        143,
        "pcjax: stopped by SIGTERM; what was saved stays; to go on: pcjax evaluate somewhere\n",
    )
    tried("SIGTERM within C code", "status 143, one line")
