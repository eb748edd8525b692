"""A command that is told to stop, hangs or fails: what it leaves, and how it resumes."""

import os
import random
import shlex
import signal
import time

import pytest
from children import ONLY_TRAIN, at_step, finish, outcome_of, start, steps_saved, wait_until
from small import SMALL, STEPS

pytestmark = pytest.mark.gate

TEACHER_STEPS = 4
STATUS = {"SIGTERM": 143, "SIGINT": 130}
KILLS, SIGNALS = 50, 20


@pytest.fixture(scope="module")
def whole(unstopped):
    return outcome_of(unstopped)


def stop_at(function, number, name):
    return f"at_call({function!r}, {number}, stop(signal.{name}))"


# In the order in which one run comes to them: the signal, where it comes, and the step it stops
# after; a signal outside a training names no step.
STOPS = {
    "it loads the data": ("SIGINT", stop_at("pcjax.jobs.distill:load_data", 1, "SIGINT"), None),
    "the teacher is trained": ("SIGTERM", at_step(2, "stop(signal.SIGTERM)"), 2),
    "the student is trained": ("SIGINT", at_step(2 + 10, "stop(signal.SIGINT)"), 10),
    # The next checkpoint is that of step 12.
    "a checkpoint is evaluated": ("SIGTERM", stop_at("pcjax.jobs.common:embed", 1, "SIGTERM"), 12),
    "all is evaluated": ("SIGTERM", stop_at("pcjax.jobs.distill:evaluate", 1, "SIGTERM"), None),
}


def test_a_signal_in_every_part_of_a_job(whole, tmp_path, tried):
    run = tmp_path / "run"
    for part, (name, before, step) in STOPS.items():
        status, output, complaint = finish(
            start("distill", *SMALL, "--workdir", run, before=before)
        )
        assert status == STATUS[name], (part, output, complaint)
        after = f"stopped by {name}" + ("" if step is None else f" after step {step}, saved")
        again = f"; repeat the command to resume: pcjax distill {shlex.join(SMALL)}"
        assert complaint == f"pcjax: {after}{again} --workdir {run}\n"
        tried(f"a signal while {part}", "its status and one line")
    assert steps_saved(run)[-1] == STEPS
    assert not (run / "result.json").exists()
    status, _, complaint = finish(start("distill", *SMALL, "--workdir", run))
    assert (status, complaint) == (0, "")
    assert outcome_of(run) == whole
    tried("signals in every part, to the end", "bit-identical")


@pytest.mark.parametrize("job", ["evaluate", "embed"])
def test_a_signal_while_a_run_is_evaluated_again(job, unstopped, tried):
    before = (unstopped / "result.json").read_bytes()
    stops = stop_at("pcjax.training.embedding:evaluation_batches", 1, "SIGTERM")
    status, _, complaint = finish(start(job, unstopped, before=stops))
    assert (status, complaint.count("\n")) == (143, 1)
    assert (unstopped / "result.json").read_bytes() == before
    assert not (unstopped / "features.npz").exists()
    tried(f"SIGTERM before `{job}`", "one line, nothing changed")


def test_a_hang_that_holds_the_interpreter(whole, tmp_path, tried):
    """The watchdog prints the stacks of all threads and ends the process."""
    run = tmp_path / "run"
    words = ["distill", *SMALL, "--workdir", run]
    hangs = at_step(TEACHER_STEPS + 10, "hang_with_the_interpreter")
    # A machine too busy for this meets the same end earlier.
    child = start(*words, "--training.watchdog-seconds", 5, before=hangs)
    status, _, complaint = finish(child)
    assert status == 1
    assert "Timeout (0:00:05)!" in complaint
    assert "most recent call first" in complaint
    status, _, complaint = finish(start(*words, before=ONLY_TRAIN))
    assert (status, complaint) == (0, "")
    assert outcome_of(run) == whole
    tried("a step that never ends", "ended with the stacks of all threads, resumed bit-identical")


def test_a_bug_shows_its_traceback(tmp_path, tried):
    child = start("distill", *SMALL, "--workdir", tmp_path / "run", before=at_step(2, "fail"))
    status, _, complaint = finish(child)
    assert status == 1
    assert "Traceback" in complaint
    assert "RuntimeError: a bug" in complaint
    tried("a bug", "status 1 and a traceback")


def test_one_command_at_a_time(whole, tmp_path, tried):
    """Another command in the same folder is refused, and changes nothing."""
    run, go = tmp_path / "run", tmp_path / "go"
    words = ["distill", *SMALL, "--workdir", run]
    waits = at_step(TEACHER_STEPS + 1, f"wait_for({str(go)!r})")
    first = start(*words, before=ONLY_TRAIN + waits)
    assert wait_until((run / "config.json").exists, first)
    status, _, complaint = finish(start(*words))
    assert (status, complaint.count("\n")) == (2, 1)
    assert f"Another command works in {run}: wait for it, or choose another" in complaint
    go.touch()
    assert finish(first)[0] == 0
    assert outcome_of(run) == whole
    tried("the same command twice at once", "the second refused, the first bit-identical")


def test_output_that_nobody_reads(tmp_path, tried):
    pipe, go = tmp_path / "pipe", tmp_path / "go"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    waits = f"pathlib.Path({str(go)!r}).touch(); wait_for({str(go) + '2'!r})()"
    child = start("list", "losses", stdout=pipe, before=waits)
    assert wait_until(go.exists, child)
    os.close(reader)
    go.with_name("go2").touch()
    status, _, complaint = finish(child)
    assert status in (1, 128 + signal.SIGPIPE)  # Rich has a status of its own
    assert complaint == ""
    tried("output that nobody reads", "ended, silent")


def test_output_without_room(tried):
    status, _, complaint = finish(start("list", "losses", stdout="/dev/full"))
    assert status == 1
    assert "No space left on device" in complaint
    tried("output on a full disk", "status 1, reported")


@pytest.mark.nightly
def test_killed_at_random_moments(whole, tmp_path, tried):
    random_, number, killed = random.Random(0), 0, 0  # noqa: S311
    while killed < KILLS:
        run = tmp_path / f"run{number}"
        child = start("distill", *SMALL, "--workdir", run)
        time.sleep(random_.random() * 4)
        child.kill()
        status = child.wait()
        if status == 0:  # it was faster
            assert outcome_of(run) == whole
            number += 1
            continue
        assert status == -9
        killed += 1
        tried("kill -9 at random moments", "resumed from")
    assert finish(start("distill", *SMALL, "--workdir", run))[0] == 0
    assert outcome_of(run) == whole
    tried("runs that were killed, to the end", "bit-identical", number + 1)


@pytest.mark.nightly
@pytest.mark.parametrize("name", STATUS)
def test_signals_at_random_moments(name, whole, tmp_path, tried):
    random_, number = random.Random(name), 0  # noqa: S311
    run = tmp_path / "run0"
    for _ in range(SIGNALS):
        child = start("distill", *SMALL, "--workdir", run)
        time.sleep(0.3 + random_.random() * 4)
        child.send_signal(signal.Signals[name])
        status, _, complaint = finish(child)
        assert status in (0, STATUS[name]), complaint
        if status == 0:
            assert outcome_of(run) == whole
            number += 1
            run = tmp_path / f"run{number}"
        else:
            assert complaint.count("\n") == 1, complaint
        tried(f"{name} at random moments", "one line" if status else "done before")
    assert finish(start("distill", *SMALL, "--workdir", run))[0] == 0
    assert outcome_of(run) == whole
    tried(f"runs that got {name}, to the end", "bit-identical", number + 1)
