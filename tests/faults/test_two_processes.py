"""Two processes of one job: whatever ends one of them ends both, and the same command resumes."""

import random
import re
import shutil
import signal
import time

import pytest
from children import (
    ONLY_TRAIN,
    at_step,
    checkpoint_of,
    environment,
    finish,
    outcome_of,
    start,
    start_two,
    steps_saved,
)
from small import SMALL, STEPS

pytestmark = pytest.mark.gate

TEACHER_STEPS = 4
ROUNDS, KILLS = 10, 20


def stopped_after(complaint):
    """Return the step that a stopped training was saved after."""
    return int(re.search(r"after step (\d+), saved", complaint)[1])


def finish_all(processes):
    for status, _, complaint in map(finish, processes):
        assert status == 0, complaint


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the outcome of two undisturbed processes."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finish_all(start_two("distill", *SMALL, "--workdir", run, before=(ONLY_TRAIN,) * 2))
    return outcome_of(run)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Stop one of two processes in its tenth step; return the run and how both ended."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    stops = ("", at_step(TEACHER_STEPS + 10, "stop(signal.SIGTERM)"))
    processes = start_two("distill", *SMALL, "--workdir", run, before=stops)
    return run, [*map(finish, processes)]


@pytest.fixture
def run(stopped, tmp_path):
    return shutil.copytree(stopped[0], tmp_path / "run")


def test_a_signal_to_one_stops_both_after_the_same_step(stopped, tried):
    run, ends = stopped
    for status, _, complaint in ends:
        assert status == 143, complaint
    (step,) = {stopped_after(complaint) for *_, complaint in ends}
    assert 10 <= step <= 18  # they ask each other every eighth step at least
    assert steps_saved(run)[-1] == step
    tried("SIGTERM to one of two", "both 143, same step saved")


def test_a_process_that_is_killed_or_fails_ends_both(run, whole, tried):
    """The other one ends too; the same command resumes and ends as if nothing had happened."""
    kill = "stop(signal.SIGKILL)"
    for name, action, who in (("kill -9", kill, 0), ("kill -9", kill, 1), ("a bug", "fail", 1)):
        before = [at_step(8, action) if place == who else "" for place in range(2)]
        processes = start_two("distill", *SMALL, "--workdir", run, before=before)
        statuses = [finish(process)[0] for process in processes]
        assert statuses[who] == (-9 if name == "kill -9" else 1)
        assert statuses[1 - who] not in (0, None)
        tried(f"{name} of one of two", "both ended")
    finish_all(start_two("distill", *SMALL, "--workdir", run, before=(ONLY_TRAIN,) * 2))
    assert outcome_of(run) == whole
    tried("kill -9 and bugs of one of two, to the end", "bit-identical")


def test_two_processes_resume_as_one_and_on_other_devices(stopped, run, tried):
    step = stopped_after(stopped[1][0][2])
    before, position = checkpoint_of(run, step)
    for devices in (4, 8):
        words = ("distill", *SMALL, "--training.steps", str(STEPS), "--workdir", run)
        stops = at_step(1, "stop(signal.SIGTERM)") if devices == 4 else ""
        child = start(*words, env=environment(JAX_NUM_CPU_DEVICES=devices), before=stops)
        status, output, complaint = finish(child)
        assert f"student: resuming after step {step} of {STEPS}" in output
        assert status == (143 if devices == 4 else 0), complaint
        step += 1
    assert position["step"] == step - 2
    assert before.keys() == checkpoint_of(run, STEPS)[0].keys()
    tried("2 processes with 2 devices to 1 with 4 and with 8", "resumed")


@pytest.mark.nightly
def test_one_hangs(run, whole, tried):
    """The other one waits in a collective; the watchdogs of both end them."""
    words = ["distill", *SMALL, "--training.watchdog-seconds", 20, "--workdir", run]
    before = (at_step(8, "hang_with_the_interpreter"), "")
    complaints = []
    for status, _, complaint in map(finish, start_two(*words, before=before)):
        assert status not in (0, None)
        complaints.append(complaint)
    assert any("Timeout (0:00:20)!" in complaint for complaint in complaints)
    finish_all(start_two("distill", *SMALL, "--workdir", run))
    assert outcome_of(run) == whole
    tried("one of two hangs", "both ended, resumed bit-identical")


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals_to_one_at_random_moments(number, whole, tmp_path, tried):
    random_, place = random.Random(int(number)), 0  # noqa: S311
    run = tmp_path / "run0"
    for _ in range(KILLS):
        processes = start_two("distill", *SMALL, "--workdir", run)
        time.sleep(1 + random_.random() * 8)
        processes[random_.randrange(2)].send_signal(number)
        ends = [finish(process) for process in processes]
        if {status for status, *_ in ends} == {0}:
            assert outcome_of(run) == whole
            place += 1
            run = tmp_path / f"run{place}"
        tried(f"{number.name} to one of two at random moments", "ended")
    finish_all(start_two("distill", *SMALL, "--workdir", run))
    assert outcome_of(run) == whole
    tried(f"{number.name} to one of two, to the end", "bit-identical", place + 1)
