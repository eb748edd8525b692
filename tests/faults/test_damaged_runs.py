"""What jobs wrote, damaged or forged before it is read again: noticed in one line, or made anew; no table is wrong."""

import copy
import json
import os
import random
import shutil

import pytest
from children import everything_in

from pcjax import cli
from pcjax._checks import RequestError
from pcjax._fields import proven
from pcjax.evaluation import tables
from pcjax.evaluation.results import result_of
from pcjax.jobs.compare import _outcome
from pcjax.jobs.tune import _tried
from pcjax.report import comparison_page as drawn
from pcjax.report import formatting as words
from pcjax.report import side_by_side
from pcjax.training.display import Display
from pcjax.training.loop import _Metrics
from pcjax.training.metrics_log import read_records

pytestmark = pytest.mark.slow

SMALL = [
    *(
        "--teacher.model.widths",
        "24",
        "--teacher.model.features",
        "12",
        "--teacher.training.steps",
        "4",
    ),
    *(
        "--student.widths",
        "8",
        "--student.features",
        "4",
        "--training.steps",
        "8",
        "--training.batch",
        "64",
    ),
    *("--training.save-every", "4", "--training.log-every", "2", "--losses", "pkt"),
]
TEXTS = (
    *(
        b"",
        b"3",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b"\xff\xfe{}",
        b"\x00" * 99,
        b"[" * 100_000,
        b'{"a":' * 50_000,
    ),
    *(
        b'{"score": NaN}',
        b'{"score": true}',
        b'{"score": "1"}',
        b'{"score": [1]}',
        b'{"score": 1e999}',
        b"{}",
    ),
    *(
        b'{"status": "done"}',
        b'{"status": "done", "metrics": {}}',
        b'{"digest": "0"}',
        b"{}" + b" " * 2**26,
    ),
)
VALUES = (3, "x", None, [], {}, True, float("nan"), 10**400, {"a": {"b": 1}})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A comparison and a tuning that have ended."""
    folder = tmp_path_factory.mktemp("whole")
    cli.main(["compare", *SMALL, "--seeds", "2", "--workdir", str(folder / "comparison")])
    taught = ["--teacher.run", str(folder / "comparison" / "teacher")]
    cli.main(["tune", *SMALL, *taught, "--trials", "1", "--workdir", str(folder / "tuning")])
    return folder


@pytest.fixture
def ended(whole):
    """The same two, as they were again after every test; their configs hold where they lie."""
    kept = whole.with_name(whole.name + "-kept")
    if not kept.exists():
        shutil.copytree(whole, kept)
    yield whole
    shutil.rmtree(whole)
    shutil.copytree(kept, whole)


def command_of(ended, job):
    taught = (
        ()
        if job == "compare"
        else ("--teacher.run", ended / "comparison" / "teacher", "--trials", "1")
    )
    folder = ended / ("comparison" if job == "compare" else "tuning")
    return (
        job,
        *SMALL,
        *taught,
        *(("--seeds", "2") if job == "compare" else ()),
        "--workdir",
        folder,
    )


def refused(command, arguments, name):
    status, said, complaint = command(*arguments)
    assert (status, said, complaint.count("\n")) == (2, "", 1), (
        f"{arguments}: {status} {said} {complaint}"
    )
    assert str(name) in complaint


def mutations(value, path=()):
    """Every place in nested objects, and the object with something else there."""
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from mutations(inner, (*path, name))
        yield (*path, name)


def mutated(value, path, other):
    found = copy.deepcopy(value)
    at = found
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = other
    return found


OUTCOMES = {
    "compare": ("comparison/runs/pkt/1/outcome.json", _outcome),
    "tune": ("tuning/trials/pkt/0/trial.json", _tried),
}


@pytest.mark.parametrize("job", OUTCOMES)
def test_what_came_of_a_run_is_whole_or_refused(job, ended, tried):
    name, read = OUTCOMES[job]
    path = ended / name
    text, before = path.read_bytes(), read(path.parent)
    texts = [*TEXTS, *(text[:cut] for cut in range(1, len(text) - 2, 37))]
    for damaged in texts:
        path.write_bytes(damaged)
        with pytest.raises(RequestError, match=r"is damaged .*delete it"):
            read(path.parent)
        tried(f"a damaged {path.name}", "refused, with what to do")
    plain = {key: value for key, value in json.loads(text).items() if key != "digest"}
    for place in mutations(plain):
        for value in VALUES:
            # Forged without the digest: what has its form is believed, what has not is refused.
            forged = mutated(plain, place, value)
            path.write_text(json.dumps(forged))
            try:
                assert read(path.parent) == forged
                numbers = [
                    *read(path.parent).get("metrics", {}).values(),
                    read(path.parent).get("score"),
                ]
                assert all(one is None or isinstance(one, (int, float)) for one in numbers)
            except RequestError:
                tried(f"a forged {path.name}", "refused, with what to do")
            path.write_text(json.dumps({**forged, "digest": json.loads(text)["digest"]}))
            if forged != plain:
                with pytest.raises(RequestError, match="it is not what was written"):
                    read(path.parent)
    random_ = random.Random(0)  # noqa: S311
    for _ in range(400):
        flipped, place = bytearray(text), random_.randrange(len(text))
        flipped[place] ^= 1 << random_.randrange(8)
        path.write_bytes(flipped)
        try:
            found = read(path.parent)
            assert {key: value for key, value in found.items() if key in before} == before
            tried(f"one flipped bit in {path.name}", "in what says nothing")
        except RequestError:
            tried(f"one flipped bit in {path.name}", "refused, with what to do")


@pytest.mark.parametrize("job", OUTCOMES)
def test_the_command_refuses_before_it_changes_anything(job, ended, command, tried):
    path = ended / OUTCOMES[job][0]
    text = path.read_bytes()
    if (
        job == "compare"
    ):  # the first run is missing: that of the second is looked at before the first is trained
        (path.parent.parent / "0" / path.name).unlink()
    for damaged in (b"", text[:-9], text.replace(b"0.", b"0.9", 1)):
        path.write_bytes(damaged)
        before = everything_in(ended)
        refused(command, command_of(ended, job), path)
        assert everything_in(ended) == before
        tried(f"a damaged {path.name}, by the command", "refused, with what to do")
    path.unlink()
    for make in (path.mkdir, lambda: os.mkfifo(path)):
        make()
        refused(command, command_of(ended, job), path)
        path.rmdir() if path.is_dir() else path.unlink()
        tried(f"a damaged {path.name}, by the command", "refused, with what to do")
    # What is deleted is found out again, as it was.
    status, _, complaint = command(*command_of(ended, job))
    assert status == 0, complaint
    again, known = json.loads(path.read_text()), json.loads(text)
    assert {key: again.get(key) for key in ("metrics", "score", "status")} == {
        key: known.get(key) for key in ("metrics", "score", "status")
    }


@pytest.mark.parametrize("job", OUTCOMES)
def test_a_link_out_of_the_folder(job, ended, command, tmp_path, tried):
    own = (ended / OUTCOMES[job][0]).parent
    for place in (
        own,
        own.parent,
        *([ended / "comparison" / "teacher"] if job == "compare" else []),
    ):
        outside = tmp_path / "outside"
        place.rename(outside)
        place.symlink_to(outside, target_is_directory=True)
        before = everything_in(tmp_path)
        refused(command, command_of(ended, job), f"{place}")
        assert everything_in(tmp_path) == before
        place.unlink()
        outside.rename(place)
        tried("a run's folder that is a link", "refused, with what to do")
    shutil.rmtree(own)
    other = shutil.copytree(ended / "comparison" / "runs" / "pkt" / "0", own.parent / "other")
    own.symlink_to(other)
    refused(command, command_of(ended, job), own)
    own.unlink()
    own.symlink_to(own)
    refused(command, command_of(ended, job), own)
    tried("a run's folder that is a link", "refused, with what to do", 2)


LINES = [{"step": step, "loss": 1.0 / step, "steps_per_second": 9.0} for step in range(1, 9)]
DAMAGED = (
    *(
        b"",
        b"{",
        b"3",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b"\x00" * 9999,
        b"[" * 100_000,
        b"{}",
        b'{"step": "3"}',
    ),
    *(
        b'{"step": true}',
        b'{"step": 3.0}',
        b'{"step": -3}',
        b'{"step": 3, "loss": NaN}',
        b'{"step": 3, "loss": 1e999}',
    ),
    *(
        b'{"step": 3, "loss": "x"}',
        b'{"step": 3, "loss": {}}',
        b'{"step": Infinity}',
        b'{"step": 1' + b"0" * 9999 + b"}",
    ),
    *(b'{"step": 3, "skipped_examples": ["x"]}', b'{"step": 3, "lo', b" " * (2**24 + 9)),
)


@pytest.mark.parametrize("ends", [True, False])
def test_lines_of_metrics(ends, tmp_path, tried):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(line).encode() for line in LINES]
    for damaged in DAMAGED:
        for place in (0, 3, len(lines)):
            text = b"\n".join([*lines[:place], damaged, *lines[place:]]) + b"\n" * ends
            path.write_bytes(text)
            cut = not ends and place == len(lines)
            found = read_records(tmp_path)
            assert found.sound == LINES
            assert found.damaged == (damaged != b"" or not cut)
            said = []
            metrics = _Metrics(path, 6, say=said.append)
            assert path.read_bytes() == b"".join(line + b"\n" for line in lines[:6])
            assert len(said) == (not cut)
            metrics.write(7, {"loss": 0.5})
            assert [record["step"] for record in read_records(tmp_path).sound] == [
                1,
                2,
                3,
                4,
                5,
                6,
                7,
            ]
            tried(
                "a damaged line of metrics.jsonl",
                "left out and said, or cut off where a crash cut it",
            )


def test_a_claim_of_a_gigabyte_is_not_allocated(tmp_path, tried):
    resource = pytest.importorskip("resource")
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(LINES[0]) + "\n")
    os.truncate(path, 2**30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = read_records(tmp_path)
    assert (found.sound, found.damaged) == (LINES[:1], 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB
    tried("metrics.jsonl of a gigabyte", "left out")


def test_a_run_whose_metrics_are_damaged_goes_on_to_what_it_was(ended, command, tried):
    own = ended / "comparison" / "runs" / "pkt" / "1"
    known = json.loads((own / "outcome.json").read_text())
    text = (own / "metrics.jsonl").read_bytes()
    for damaged in (b"nonsense\n" + text, text[:-9], b""):
        (own / "metrics.jsonl").write_bytes(damaged)
        (own / "outcome.json").unlink()
        status, said, complaint = command(*command_of(ended, "compare"))
        assert status == 0, complaint
        assert ("had 1 lines" in said) == damaged.startswith(b"nonsense")
        assert json.loads((own / "outcome.json").read_text())["metrics"] == known["metrics"]
        tried(
            "damaged metrics.jsonl of a comparison's run",
            "left out and said, the table is the same",
        )
    (own / "metrics.jsonl").unlink()
    os.mkfifo(own / "metrics.jsonl")
    (own / "outcome.json").unlink()
    status, _, complaint = command(*command_of(ended, "compare"))
    assert (status, complaint.count("\n")) == (2, 1)
    assert str(own / "metrics.jsonl") in complaint
    tried("metrics.jsonl that is no file", "refused, with what to do")


def test_results_of_a_run(ended, command, tried):
    own = ended / "comparison" / "runs" / "pkt" / "0"
    path = own / "result.json"
    known = json.loads(path.read_text())
    student = known["student"] | {
        "throughput": {"examples_per_second": 9.5, "batch": 8, "device": "cpu"},
        "other": {"tfds:some.thing": {"knn_accuracy": 0.5, "linear_probe_accuracy": None}},
        "corruptions": {
            "clean": 0.9,
            "blur": {"1": 0.8, "2": 0.7, "3": 0.6, "mean": 0.7},
            "mean": 0.7,
        },
        "unseen": {
            "examples": 9,
            "classes": 2,
            **{name: known["student"][name] for name in ("coherence", "retrieval")},
        },
    }
    # Digests do not help against whoever writes them too.
    full = known | {"student": student}
    path.write_text(json.dumps(proven(full)))
    del full["digest"]
    assert result_of(own) == full
    for place in mutations(full):
        for value in VALUES:
            path.write_text(json.dumps(proven(mutated(full, place, value))))
            try:
                found = result_of(own)
            except RequestError as error:
                assert str(path) in str(error)  # noqa: PT017
                tried("a forged result.json", "refused, with what to do")
                continue
            tables.show(found, Display(quiet=True))
            words.results(found)
    high = proven(full | {"student": student | {"knn_accuracy": "high"}})
    higher = proven(full) | {"student": student | {"knn_accuracy": 0.99}}  # by whoever does not
    for forged in (high, higher):
        path.write_text(json.dumps(forged))
        for job in ("evaluate", "report", "embed", "export"):
            refused(command, (job, own), path)
            tried("a forged result.json, by the command", "refused, with what to do")
    # The run's own command writes it anew.
    assert command("distill", own / "config.json", "--workdir", own)[0] == 0
    assert json.loads(path.read_text())["student"] == known["student"]


def test_a_comparison_that_is_drawn(ended, command, tried):
    folder = ended / "comparison"
    path = folder / "comparison.json"
    known = json.loads(path.read_text())
    known["config"] = {}
    pages = 0
    for place in mutations(known):
        for value in VALUES:
            path.write_text(json.dumps(proven(mutated(known, place, value))))
            try:
                drawn._read(folder)
            except RequestError as error:
                assert str(path) in str(error)  # noqa: PT017
                tried("a forged comparison.json", "refused, with what to do")
                continue
            pages += 1
            if pages % 100 == 0:
                drawn.comparison_page(folder)
    for forged in (proven(known | {"teacher": {"spearman": "high"}}), known | {"teacher": {}}):
        path.write_text(json.dumps(forged))
        refused(command, ("report", folder), path)
    (folder / "runs" / "pkt" / "0" / "metrics.jsonl").write_text("nonsense\n")
    path.write_text(json.dumps(proven(known)))
    shutil.move(folder / "runs" / "pkt" / "1", folder / "runs" / "other")
    (folder / "runs" / "pkt" / "1").symlink_to(folder / "runs" / "other")
    assert command("report", folder)[0] == 0
    assert "1 lines are not as they were written" in (folder / "report.html").read_text()
    assert side_by_side.run_folder(folder, "pkt", "0") == folder / "runs" / "pkt" / "0"
    for led in (("pkt", "1"), ("..", "teacher"), ("pkt", "../../teacher"), ("/", "0"), ("pkt", "")):
        with pytest.raises(RequestError, match="leads to"):
            side_by_side.run_folder(folder, *led)
        tried("a run's folder that a report is led out of", "refused, with what to do")
