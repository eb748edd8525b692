"""Two processes of one job: one is told to stop, or killed; the other one ends too, and both go on as if nothing was.

PCJAX_FAULTS says how often; one round of each unless it does.
"""

import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time

import children
import pytest
from children import (
    LOST,
    SMALL,
    STEPS,
    arrays_of,
    environment,
    finish,
    outcome_of,
    start,
    start_two,
    wait_until,
)
from counts import tries

pytestmark = pytest.mark.slow

ROUNDS, KILLS = tries(4), tries(10)  # rounds of every phase, and pairs of kills
LONGEST = 15  # seconds from a death to the other one's end
RESTORED = pathlib.Path(__file__).parent / "restored.py"


def unfinished(run):
    return [
        path
        for path in (run / "checkpoints").glob("*")
        if path.name.isdecimal() and not (path / "commit_success.txt").exists()
    ]


def newest(run):
    return max(
        (int(path.name) for path in (run / "checkpoints").glob("*") if path.name.isdecimal()),
        default=0,
    )


def written(run):
    metrics = run / "metrics.jsonl"
    return metrics.read_text() if metrics.exists() else None


# In the order in which one training comes through them: what a folder looks like then, and what was written before.
PHASES = {
    "prepares": lambda run, before: (run / "config.json").exists(),
    "compiles": lambda run, before: written(run) == "",
    "trains": lambda run, before: written(run) not in (None, "", before),
    "saves": lambda run, before: unfinished(run),
    "evaluates": lambda run, before: (
        (run / "checkpoints" / str(STEPS) / "commit_success.txt").exists()
        and not (run / "result.json").exists()
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two processes that were left in peace."""
    run = tmp_path_factory.mktemp("whole") / "run"
    both(start_two("distill", *SMALL, "--workdir", run))
    return outcome_of(run)


def both(processes):
    for status, _, complaint in map(finish, processes):
        assert status == 0, complaint


def at(phase, run, before, processes, random_):
    assert wait_until(lambda: PHASES[phase](run, before), processes[0], every=0.002), phase
    time.sleep(random_.random() * (0.02 if phase == "saves" else 0.3))


def test_one_is_told_to_stop_in_each_phase(whole, tmp_path, tried):
    random_, slowest = random.Random(0), 0.0  # noqa: S311
    for place in range(ROUNDS):
        run = tmp_path / f"run{place}"
        for phase in PHASES:
            before, who = written(run), random_.randrange(2)
            processes = start_two("distill", *SMALL, "--workdir", run)
            at(phase, run, before, processes, random_)
            processes[who].send_signal(signal.SIGTERM)
            told = time.monotonic()
            ends = [finish(process, timeout=60) for process in processes]
            slowest = max(slowest, time.monotonic() - told)
            for status, _, complaint in ends:
                assert status == 143, f"{phase}, {who}: {status} {complaint}"
                assert complaint.startswith("pcjax: stopped by SIGTERM"), f"{phase}: {complaint}"
                assert complaint.count("\n") == 1, f"{phase}: {complaint}"
            stopped = {
                complaint.split("after step ")[1].split(",")[0]
                for *_, complaint in ends
                if "after" in complaint
            }
            assert len(stopped) <= 1, ends
            assert phase not in ("trains", "compiles") or stopped, ends
            for step in stopped:
                # The teacher, which is trained first, has checkpoints of its own.
                assert [*run.glob(f"**/checkpoints/{step}/commit_success.txt")]
            tried(
                f"SIGTERM to one of two while it {phase}",
                "both 143, " + ("same step saved" if stopped else "ended"),
            )
        both(start_two("distill", *SMALL, "--workdir", run))
        assert outcome_of(run) == whole
        tried("SIGTERM to one of two, then to the end", "bit-identical")
    print(f"from the signal to the end of both at most {slowest:.1f} s")


# The second process is three seconds late to note signals rather than to end by them.
LATE = """
import os, time
from pcjax.cli import command
from pcjax.training.stopping import StopSignals

enter = StopSignals.__enter__

def late(signals):
    time.sleep(3)
    return enter(signals)

if os.environ["PCJAX_PROCESS"] == "1":
    StopSignals.__enter__ = late
command()
"""


def test_one_that_is_late_is_told_to_stop_as_training_begins(tmp_path, tried):
    asked = ["distill", *SMALL, "--teacher.training.steps", "1000", "--workdir", tmp_path]
    processes = start_two(*asked, program=(sys.executable, "-c", LATE))
    assert wait_until((tmp_path / "teacher" / "metrics.jsonl").exists, processes[0], every=0.002)
    processes[1].send_signal(signal.SIGTERM)
    ends = [finish(process, timeout=60) for process in processes]
    assert {status for status, *_ in ends} == {143}, ends
    assert len({complaint.split("after step ")[1].split(",")[0] for *_, complaint in ends}) == 1, (
        ends
    )
    tried("SIGTERM to one of two that is late", "both 143, same step saved")


# A second for every step.
SLOW = """
import time
from pcjax.cli import command
from pcjax.training.parallel import Mapped

step = Mapped.__call__

def slow(*given):
    time.sleep(1)
    return step(*given)

Mapped.__call__ = slow
command()
"""


def test_where_steps_are_slow_fewer_are_waited_for(tmp_path, tried):
    asked = [
        "--teacher.training.steps",
        "1000",
        "--teacher.training.log-every",
        "1",
        "--workdir",
        tmp_path,
    ]
    processes = start_two("distill", *SMALL, *asked, program=(sys.executable, "-c", SLOW))
    metrics = tmp_path / "teacher" / "metrics.jsonl"
    assert wait_until(
        lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 8, processes[0]
    )
    told = json.loads(metrics.read_text().splitlines()[-1])["step"]
    processes[1].send_signal(signal.SIGTERM)
    ends = [finish(process, timeout=60) for process in processes]
    assert {status for status, *_ in ends} == {143}, ends
    (stopped,) = {int(complaint.split("after step ")[1].split(",")[0]) for *_, complaint in ends}
    assert told < stopped <= told + 4
    tried(
        "SIGTERM to one of two of slow steps", "both 143, same step saved, at most four steps later"
    )


# SIGTERM stays what JAX makes of it where processes join: the notice that its preemption service passes on to all.
NOTICED = """
import signal
from pcjax.cli import command

own = signal.signal
signal.signal = lambda number, handler: handler if number == signal.SIGTERM else own(number, handler)
command()
"""


def test_the_preemption_service_gives_notice_to_one(tmp_path, tried):
    asked = ["distill", *SMALL, "--teacher.training.steps", "100000", "--workdir", tmp_path]
    processes = start_two(*asked, program=(sys.executable, "-c", NOTICED))
    assert wait_until(lambda: newest(tmp_path / "teacher"), processes[0])
    processes[1].send_signal(signal.SIGTERM)
    ends = [finish(process, timeout=60) for process in processes]
    assert {status for status, *_ in ends} == {143}, ends
    assert "SIGTERM caught" in ends[1][2], "it was not JAX's notice"
    assert "SIGTERM caught" not in ends[0][2]
    stopped = {complaint.split("after step ")[1].split(",")[0] for *_, complaint in ends}
    assert len(stopped) == 1, ends
    assert (tmp_path / "teacher" / "checkpoints" / stopped.pop() / "commit_success.txt").exists()
    tried("a notice of JAX's preemption service to one of two", "both 143, same step saved")


def test_the_output_of_one_is_read_no_more(tmp_path, tried):
    processes = start_two("distill", *SMALL, "--workdir", tmp_path)
    processes[0].stdout.close()
    assert processes[0].wait(timeout=200) == 128 + signal.SIGPIPE
    ended = time.monotonic()
    status, _, complaint = finish(processes[1], timeout=60)
    assert time.monotonic() - ended <= LONGEST
    assert (status, complaint.count("\n")) == (1, 1), complaint
    assert "another process of the job ended with status 141" in complaint
    tried("standard output that nobody reads, of one of two", "both ended, one line")


def start_with_a_fault(*asked, **given):
    """Two processes, of which the first one meets a fault."""
    one, other = children.environments_of_two()
    return [start(*asked, env=one | children.fault(**given)), start(*asked, env=other)]


def test_one_hangs(whole, tmp_path, tried):
    """The first process hangs where it writes metrics, the second one in a collective that the first never comes to."""
    run, seconds = tmp_path / "run", 20
    asked = ["distill", *SMALL, "--training.watchdog-seconds", seconds, "--workdir", run]
    processes = start_with_a_fault(
        *asked, **{"in": run, "from": "metrics.jsonl", "at": 6, "hangs": 300}
    )
    ended, found = f"has not ended for {seconds} s (training.watchdog_seconds)", 0
    for status, _, complaint in [finish(process) for process in processes]:
        assert status == 1, complaint
        stacks = ended in complaint and "Thread 0x" in complaint
        assert stacks or LOST in complaint
        found += stacks
        tried(
            "one of two processes hangs",
            "status 1, the stacks of all threads" if stacks else "status 1, told",
        )
    assert found
    both(start_two(*asked))
    assert outcome_of(run) == whole
    tried("one of two processes hangs, then to the end", "bit-identical")


def test_the_newest_checkpoint_is_damaged(whole, tmp_path, tried):
    run = tmp_path / "run"
    processes = start_two("distill", *SMALL, "--workdir", run)
    assert wait_until(lambda: newest(run) >= 12 and not unfinished(run), processes[0], every=0.01)
    processes[1].send_signal(signal.SIGTERM)
    assert [finish(process)[0] for process in processes] == [143, 143]
    step = newest(run)
    array = max(
        (run / "checkpoints" / f"{step}" / "state").rglob("d/*"),
        key=lambda path: path.stat().st_size,
    )
    os.truncate(array, array.stat().st_size // 2)
    ends = [finish(process) for process in start_two("distill", *SMALL, "--workdir", run)]
    assert [(status, complaint) for status, _, complaint in ends] == [(0, ""), (0, "")]
    assert f"checkpoint {step} is unsound (" in ends[0][1]
    assert outcome_of(run) == whole
    tried("a damaged checkpoint of two processes", "named, the one before taken, bit-identical")


def test_two_that_see_different_disks_are_told(tmp_path, tried):
    one, other = children.environments_of_two()
    places = [(one, tmp_path / "a"), (other, tmp_path / "b")]
    processes = [start("distill", *SMALL, "--workdir", place, env=env) for env, place in places]
    (first, _, _), (second, _, complaint) = [finish(process) for process in processes]
    assert (first, second) == (1, 2)
    assert "process 1 does not see" in complaint
    assert "expected one --workdir on a disk that all processes see" in complaint
    assert complaint.count("\n") == 1
    tried("two processes with a --workdir each", "status 2, one line")


def test_the_disk_fails_for_a_while(whole, tmp_path, tried):
    run = tmp_path / "run"
    fault = {"in": run / "checkpoints", "from": "12", "at": 0, "errors": 8}
    ends = [
        finish(process)
        for process in start_with_a_fault("distill", *SMALL, "--workdir", run, **fault)
    ]
    assert [(status, complaint) for status, _, complaint in ends] == [(0, ""), (0, "")]
    assert "could not be saved" in ends[0][1]
    assert outcome_of(run) == whole
    tried("a disk with EIO for a while, under two processes", "said, saved later, bit-identical")


def test_the_disk_stays_broken(whole, tmp_path, tried):
    """The last save fails: both end with status 1 and one line, and go on from what was saved before."""
    run = tmp_path / "run"
    fault = {"in": run / "checkpoints", "from": "30", "at": 0, "errors": 10**6}
    processes = start_with_a_fault("distill", *SMALL, "--workdir", run, **fault)
    for status, _, complaint in [finish(process) for process in processes]:
        assert (status, complaint.count("\n")) == (1, 1), complaint
        assert "could not" in complaint
        assert "see to the disk" in complaint
    assert newest(run) == 27
    both(start_two("distill", *SMALL, "--workdir", run))
    assert outcome_of(run) == whole
    tried(
        "a disk that stays broken, under two processes",
        "both status 1, one line, resumed bit-identical",
    )


def test_one_is_killed(whole, tmp_path, tried):
    random_, slowest = random.Random(1), 0.0  # noqa: S311
    folders, sittings = 0, 0
    for place in range(2 * KILLS):
        run = tmp_path / f"run{folders}"
        phase, before = random_.choice([*PHASES]), newest(run)
        processes, who = start_two("distill", *SMALL, "--workdir", run), place % 2
        # Later sittings in the same folder are known by what they save.
        when = PHASES[phase] if sittings == 0 else lambda run, before: newest(run) > before
        then = None if sittings == 0 else before
        assert wait_until(
            lambda run=run, when=when, then=then: when(run, then), processes[0], every=0.002
        )
        time.sleep(random_.random() * 0.3)
        alive = all(process.poll() is None for process in processes)
        processes[who].kill()
        killed = time.monotonic()
        status, _, complaint = finish(processes[1 - who], timeout=60)
        processes[who].communicate()
        if alive:
            slowest = max(slowest, time.monotonic() - killed)
            assert time.monotonic() - killed <= LONGEST, complaint
            assert status == 1, f"{phase}, {who}: {status} {complaint}"
            # JAX may print of its own beside it.
            assert complaint.splitlines().count(LOST) == 1, complaint
            assert "Traceback" not in complaint, complaint
            tried("kill -9 of one of two", f"the other one ended within {LONGEST} s, status 1")
        sittings += 1
        if sittings == 4 or newest(run) == STEPS or place == 2 * KILLS - 1:
            folders, sittings = folders + 1, 0
            both(start_two("distill", *SMALL, "--workdir", run))
            assert outcome_of(run) == whole
            tried("kill -9 of one of two, then to the end", "bit-identical")
    print(f"from the kill to the other one's end at most {slowest:.1f} s")


def check_shards(run, step, environments, devices=8):
    """After a restore every device of a job holds every array as it was saved."""
    saved, _ = arrays_of(run, step)
    expected = {
        f"{name} {hashlib.blake2b(array.tobytes()).hexdigest()}" for name, array in saved.items()
    }
    started = [
        start(run, step, program=(sys.executable, RESTORED), env=env) for env in environments
    ]
    ends = [finish(process, timeout=200) for process in started]
    assert {status for status, *_ in ends} == {0}, ends
    # Gloo says something too.
    found = [line for _, said, _ in ends for line in said.splitlines() if line.startswith("shard ")]
    assert {line.split(" ", 2)[2] for line in found} == expected
    assert len(found) == devices * len(expected)


@pytest.fixture(scope="module")
def stopped_on_eight(tmp_path_factory):
    """A run that was stopped on eight devices, and where."""
    run = tmp_path_factory.mktemp("eight") / "run"
    process = start("distill", *SMALL, "--workdir", run, env=environment(JAX_NUM_CPU_DEVICES=8))
    assert wait_until(lambda: written(run) and newest(run) > 0, process)
    process.send_signal(signal.SIGTERM)
    status, _, complaint = finish(process)
    assert status == 143, complaint
    return run, int(complaint.split("after step ")[1].split(",")[0])


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_eight_devices_to_another_number(count, stopped_on_eight, tmp_path, tried):
    stopped, step = stopped_on_eight
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    check_shards(run, step, [environment(JAX_NUM_CPU_DEVICES=count)], count)
    # Said in the config too, which does not make it another run.
    asked = ("distill", *SMALL, "--training.devices", count, "--training.keep", 3, "--workdir", run)
    status, said, complaint = finish(start(*asked, env=environment(JAX_NUM_CPU_DEVICES=count)))
    assert status == 0, complaint
    assert f"going on after step {step} of {STEPS}" in said
    assert arrays_of(run, STEPS)[0]["step"] == STEPS
    tried("8 devices to 1, 2, 4 and 8", "bit-identical after the restore, gone on to the end")


@pytest.mark.parametrize("first", [1, 2])
def test_one_process_with_eight_devices_and_two_with_four(first, tmp_path, tried):
    run = tmp_path / "run"

    def begin(processes):
        asked = ("distill", *SMALL, "--workdir", run)
        if processes == 1:
            return [start(*asked, env=environment(JAX_NUM_CPU_DEVICES=8))]
        return start_two(*asked, JAX_NUM_CPU_DEVICES=4)

    processes = begin(first)
    assert wait_until(lambda: bool(written(run)), processes[0])
    processes[0].send_signal(signal.SIGTERM)
    ends = [finish(process) for process in processes]
    assert {status for status, *_ in ends} == {143}, ends
    step = int(ends[0][2].split("after step ")[1].split(",")[0])
    two = children.environments_of_two(JAX_NUM_CPU_DEVICES=4)
    check_shards(run, step, two if first == 1 else [environment(JAX_NUM_CPU_DEVICES=8)])
    said = [finish(process) for process in begin(3 - first)]
    assert {status for status, *_ in said} == {0}, said
    assert f"going on after step {step} of {STEPS}" in said[0][1]
    tried(
        "1 process with 8 devices and 2 with 4, either way",
        "bit-identical after the restore, gone on to the end",
    )
