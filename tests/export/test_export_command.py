"""`pcjax export` of students of images: files, model card and what the command prints."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

import pcjax

pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

pytestmark = pytest.mark.gate  # a real run, exported by the command

WORDS = (
    *("--data.source", "digits", "--data.part", "0.2", "--training.devices", "1"),
    *("--student.name", "mlp", "--student.widths", "8", "--student.features", "4"),
    *("--teacher.model.name", "mlp", "--teacher.model.widths", "16"),
    *("--teacher.training.steps", "4", "--teacher.training.batch", "32"),
    *("--training.steps", "4", "--training.batch", "32", "--losses", "perception_coherence"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory, run_command):
    folder = tmp_path_factory.mktemp("runs") / "digits-student"
    assert run_command("distill", *WORDS, "--workdir", folder) == 0
    assert run_command("export", folder) == 0
    return folder


@pytest.mark.parametrize("weights", ["onnx", "onnx-int8"])
def test_a_card_with_measured_numbers_stands_beside_the_file(weights, run, command):
    status, output, complaint = command("export", run, "--format", weights, "--licence", "mit")
    assert (status, complaint) == (0, "")
    path = run / weights / "model.onnx"
    assert f"{path}: {path.stat().st_size:,} bytes" in output
    card = (path.parent / "README.md").read_text()
    for part in (
        "# digits-student\n",
        'license: "mit"',
        'pipeline_tag: "image-feature-extraction"',
        "The licence of the student is mit.",
        "fingerprint `",
        "coherence (Spearman)",
        f"The file has {path.stat().st_size:,} bytes.",
        "one thread, batch 1",
        "the teacher as an ONNX file",
    ):
        assert part in card
    for part in ("int8 with the float student 0.9", "; with the teacher int8 ", ", float "):
        assert (part in card) == (weights == "onnx-int8")
    lines = [line for line in card.splitlines() if line.startswith(("Time of one", "Coherence ("))]
    assert lines
    for line in lines:
        assert line in output
    assert str(run) not in card
    student = pcjax.load(run)
    images = np.random.default_rng(0).random((7, 8, 8, 1), np.float32)
    session = onnxruntime.InferenceSession(path)
    (vectors,) = session.run(["embedding"], {"pixel_values": images.transpose(0, 3, 1, 2)})
    expected = student.features(images)
    tolerance = {"onnx": 1e-5, "onnx-int8": 0.05}[weights] * np.abs(expected).max()
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=tolerance)


def test_a_student_has_the_licence_that_its_owner_gives(run, command):
    assert command("export", run, "--format", "onnx")[0] == 0
    card = (run / "onnx/README.md").read_text()
    assert "license:" not in card
    assert "The licence of the student is not stated: its owner chooses it." in card


@pytest.mark.parametrize("name", ["safetensors", "stablehlo"])
def test_a_file_has_a_card_beside_it_whose_code_runs(name, run, command):
    status, _, complaint = command("export", run, "--format", name, "--licence", "mit")
    assert (status, complaint) == (0, "")
    card = (run / f"student.{name}.md").read_text()
    for part in ('license: "mit"', "fingerprint `", "Time of one example: as an ONNX file "):
        assert part in card
    assert card.count("as an ONNX file") == 2  # the teacher's too
    assert str(run) not in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(vectors.shape)"],
        check=True,
        cwd=run,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "(2, 4)\n"


def test_stablehlo_is_described(run, command):
    status, output, complaint = command("export", run, "--format", "stablehlo", "--normalise")
    assert (status, complaint) == (0, "")
    assert "jax.export.deserialize" in output
    description = json.loads((run / "student.stablehlo.json").read_text())
    assert description["outputs"] == ["embedding"]
    assert description["platforms"] == ["cpu", "cuda", "tpu"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--normalise",), "--normalise is not for --format safetensors"),
        (("--format", "torchvision"), "torchvision has no mlp"),
        (("--format", "model2vec"), "is for students that read texts"),
        (("--licence", "../../x"), "is not the name of a licence"),
        (("--format", "onx"), "onnx"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(words, message, run, command):
    before = sorted(run.rglob("*"))
    status, _, complaint = command("export", run, *words)
    assert (status, complaint.count("\n")) == (2, 1)
    assert message in complaint
    assert sorted(run.rglob("*")) == before
