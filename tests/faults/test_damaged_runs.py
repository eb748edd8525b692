"""Files that a job wrote, damaged before another one reads them: refused in one line."""

import json
import shutil

import pytest
from children import everything_in
from small import QUICK

from pcjax._checks import RequestError
from pcjax.run import path_inside
from pcjax.training.metrics_log import read_metrics

pytestmark = pytest.mark.gate

RUN = "comparison/runs/pkt/0"


def words_of(folder, job):
    """Return the command that made the comparison or the tuning in a folder."""
    words = [job, *QUICK, "--losses", "pkt"]
    if job == "compare":
        return [*words, "--seeds", 1, "--workdir", folder / "comparison"]
    teacher = ["--teacher.run", folder / "comparison" / "teacher"]
    return [*words, *teacher, "--trials", 1, "--workdir", folder / "tuning"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, run_command):
    """Return the folder of a finished comparison and a finished tuning."""
    folder = tmp_path_factory.mktemp("whole") / "all"
    for job in ("compare", "tune"):
        assert run_command(*words_of(folder, job)) == 0
    return folder


@pytest.fixture
def ended(whole):
    """Restore both folders after the test; configs hold absolute paths."""
    copy = whole.with_name("copy")
    if not copy.exists():
        shutil.copytree(whole, copy)
    yield whole
    shutil.rmtree(whole)
    shutil.copytree(copy, whole)


READERS = {
    f"{RUN}/outcome.json": [lambda folder: words_of(folder, "compare")],
    "tuning/trials/pkt/0/trial.json": [lambda folder: words_of(folder, "tune")],
    "comparison/comparison.json": [lambda folder: ["report", folder / "comparison"]],
    f"{RUN}/result.json": [
        lambda folder, job=job: [job, folder / RUN]
        for job in ("evaluate", "report", "embed", "export")
    ],
}
DAMAGES = {
    "empty": lambda text: b"",
    "cut": lambda text: text[: len(text) // 2],
    "of another form": lambda text: b"[3]",
    "not text": lambda text: b"\xff\xfe{}",
    "nested without end": lambda text: b"[" * 100_000,
    "with another digit": lambda text: text.replace(b"0.", b"0.9", 1).replace(b"1.", b"1.9", 1),
    "with a value more": lambda text: text.replace(b"{", b'{"more": 1, ', 1),
    "without its digest": lambda text: json.dumps(
        {name: value for name, value in json.loads(text).items() if name != "digest"}
    ).encode(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_refused_before_anything_changes(name, damage, ended, command, tried):
    path = ended / name
    text = path.read_bytes()
    path.write_bytes(DAMAGES[damage](text))
    assert path.read_bytes() != text
    before = everything_in(ended)
    for words in READERS[name]:
        status, output, complaint = command(*words(ended))
        assert (status, complaint.count("\n")) == (2, 1), (output, complaint)
        assert str(path) in complaint
        assert everything_in(ended) == before
        tried(f"{path.name} that is damaged", "refused, with what to do")


@pytest.mark.parametrize("job", ["compare", "tune"])
def test_a_deleted_outcome_is_found_out_again(job, ended, command):
    name = {"compare": f"{RUN}/outcome.json", "tune": "tuning/trials/pkt/0/trial.json"}[job]
    before = json.loads((ended / name).read_text())
    (ended / name).unlink()
    status, _, complaint = command(*words_of(ended, job))
    assert status == 0, complaint
    after = json.loads((ended / name).read_text())
    for key in ("status", "metrics", "score"):
        assert after.get(key) == before.get(key)


def test_a_link_out_of_the_folder_is_refused(ended, command, tmp_path, tried):
    for name in ("comparison/runs/pkt/0", "comparison/runs/pkt", "comparison/teacher"):
        path, outside = ended / name, tmp_path / "outside"
        path.rename(outside)
        path.symlink_to(outside, target_is_directory=True)
        before = everything_in(tmp_path)
        status, _, complaint = command(*words_of(ended, "compare"))
        assert (status, complaint.count("\n")) == (2, 1), complaint
        assert f"{name.rpartition('/')[2]}" in complaint
        assert everything_in(tmp_path) == before
        path.unlink()
        outside.rename(path)
        tried("a run's folder that is a link", "refused, with what to do")
    for names in (("..", "x"), ("runs", "../../x"), ("/", "x")):
        with pytest.raises(RequestError, match="leads out of"):
            path_inside(ended, *names)


DAMAGED_LINES = [b"", b"{", b"3", b"null", b"[]", b'"x"', b"\xff\xfe", b"\x00" * 9999, b"{}"]
DAMAGED_LINES += [b"[" * 100_000, b'{"step": "3"}', b'{"step": 3.5}', b'{"step": 3, "lo']


@pytest.mark.parametrize("end", [b"\n", b""])
def test_damaged_lines_of_metrics_are_left_out(end, tmp_path, tried):
    records = [{"step": step, "loss": 1.0 / step} for step in range(1, 9)]
    lines = [json.dumps(record).encode() for record in records]
    for damaged in DAMAGED_LINES:
        for place in (0, 3, len(lines)):
            text = b"\n".join([*lines[:place], damaged, *lines[place:]]) + end
            (tmp_path / "metrics.jsonl").write_bytes(text)
            assert read_metrics(tmp_path) == records
            tried("a damaged line of metrics.jsonl", "left out")
