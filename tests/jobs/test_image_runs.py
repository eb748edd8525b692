"""A folder of pictures to an ONNX file: the commands, as a user gives them, in this process."""

import contextlib
import json
import pathlib

import numpy as np
import pytest
from architectures import few_blocks
from PIL import Image
from small_vits import vit_tensors, write_folder, write_preprocessor

import pcjax
from pcjax import data
from pcjax.teachers import find_encoder
from pcjax.training import build
from pcjax.training.metrics_log import read_metrics

REAL = pathlib.Path(__file__).parents[3] / "shared" / "tfds"
COUNT, SIDE = 2000, 24
SHORT = (
    *("--training.steps", "20", "--training.batch", "64", "--training.save-every", "10"),
    *("--training.learning-rate", "0.003", "--training.devices", "1"),
    *("--training.log-every", "5"),
    *("--data.image-size", SIDE, "--data.image-labels", "folders"),
    *("--student.name", "mobilenetv2", "--student.width", "0.25", "--student.features", "16"),
)


def real_images():
    """Return CIFAR-100's first images where they are, else scikit-learn's digits, and classes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pcjax.data.tfds.IN_MEMORY", 0)  # decode only what is taken
        if (REAL / "cifar100").is_dir():
            examples = data.load("tfds:cifar100", data_dir=str(REAL)).test
        else:
            examples = data.load("digits").train
        images, labels = examples.take_labelled(np.arange(min(COUNT, len(examples))))
    if images.shape[3] == 1:
        images = np.repeat(np.clip(images * 15, 0, 255).astype(np.uint8), 3, axis=3)
    return images, labels % 7


@pytest.fixture(
    scope="module", params=["few blocks", pytest.param("all blocks", marks=pytest.mark.nightly)]
)
def folder(request, tmp_path_factory):
    """Return a folder of JPEGs by class, of several sizes, and a DINOv2 with random weights."""
    folder = tmp_path_factory.mktemp("pictures")
    images, labels = real_images()
    assert len(images) == COUNT or not (REAL / "cifar100").is_dir()
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / "pictures" / f"class {label}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (32 + number % 5, 32 + number % 3)
        Image.fromarray(image).resize(size).save(path, quality=92)
    write_folder(folder / "dino", "dinov2", vit_tensors(layer_scale=True))
    write_preprocessor(folder / "dino")
    students = few_blocks() if request.param == "few blocks" else contextlib.nullcontext()
    build._builder.cache_clear()  # a student is built once for each name and options
    with pytest.MonkeyPatch.context() as patched, students:
        patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def run(folder, run_command):
    """Return a run on pictures whose teacher's features were computed before it."""
    source = f'data=Data(source="images:{folder}/pictures", image_size={SIDE}, flip=True)'
    teacher = f'teacher=Teacher(source="dinov2:{folder}/dino", views=2)'
    config = folder / "config.py"
    config.write_text(f"from pcjax.config import *\nconfig = Config({source}, {teacher})\n")
    assert run_command("embed", config, "--data.image-labels", "folders") == 0
    before = cached(folder)
    assert len(folders(folder)) == 1
    # The features of all pictures, and of those that are flipped in one of two views.
    assert COUNT * 1.3 < computed(folder) < COUNT * 1.8
    assert run_command("distill", config, *SHORT, "--workdir", folder / "run") == 0
    assert cached(folder) == before
    return folder / "run"


def folders(folder):
    """Return the folders of the teacher's features."""
    return [*(folder / "cache/pcjax/teachers").iterdir()]


def computed(folder):
    """Return of how many pictures there are features."""
    paths = (folder / "cache/pcjax/teachers").rglob("*.npz")
    return sum(len(np.load(path)["keys"]) for path in paths)


def cached(folder):
    """Return when each file of the teacher's features was written."""
    return {path: path.stat().st_mtime_ns for each in folders(folder) for path in each.iterdir()}


@pytest.mark.gate
def test_pictures_to_a_student_and_its_report(run, folder, command):
    result = json.loads((run / "result.json").read_text())
    losses = [record["loss"] for record in read_metrics(run) if "loss" in record]
    assert losses[-1] < losses[0]
    assert result["teacher"]["parameters"] > 0
    assert 0 < result["student"]["knn_accuracy"] <= 1
    page = (run / "report.html").read_text()
    assert "class 3" in page
    assert command("evaluate", run)[0] == 0
    words, before = ("--data.image-labels", "folders", "--teacher.views", "3"), computed(folder)
    status, output, complaint = command("embed", folder / "config.py", *words)
    assert (status, complaint) == (0, "")
    assert "and 3 views of train" in output
    assert before < computed(folder) < before + COUNT / 5  # one more view
    assert command("embed", run)[0] == 0


@pytest.mark.gate
def test_onnx_finds_the_same_neighbours(run, folder, command):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    for each in ("safetensors", "onnx"):
        status, _, complaint = command("export", run, "--format", each)
        assert (status, complaint) == (0, "")
    source = f"images:{folder}/pictures"
    images = data.load(source, image_size=SIDE).test.take(np.arange(200))
    expected = np.asarray(pcjax.load(run).features(images))
    session = onnxruntime.InferenceSession(run / "onnx/model.onnx")
    pixels = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    (features,) = session.run(["embedding"], {"pixel_values": pixels})
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    encoder = find_encoder(f"onnx:{run}/onnx/model.onnx")  # its normalisation is inside
    seen = encoder.view(data.load(source, image_size=SIDE))
    outputs = encoder.features(seen.test, seen.normalise, 32)[:200]
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())

    def nearest(rows):
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        similarity = rows @ rows.T - 2 * np.eye(len(rows))
        return np.argsort(-similarity, axis=1)[:, :5]

    assert (nearest(features) == nearest(expected)).mean() > 0.99  # rounding orders near ties
    card = (run / "onnx/README.md").read_text()
    assert "dino" in card
    assert str(folder) not in card


@pytest.mark.gate
def test_what_cannot_be_is_refused_in_one_line(tmp_path, folder, command):
    (tmp_path / "empty").mkdir()
    for number in range(200):
        path = tmp_path / f"texts/{'ab'[number % 2]}/{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("no image")
        split = tmp_path / f"half/{'train' if number < 100 else 'test'}/{number}.jpg"
        split.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number, 0, 0)).save(split)
        if number > 120:
            split.write_text("no image")
    (tmp_path / "weights.pth").write_bytes(b"pickle")
    good = {
        "--data.source": f"images:{folder}/pictures",
        "--teacher.source": f"dinov2:{folder}/dino",
    }
    for option, value, names in (
        ("--data.source", f"images:{tmp_path}/empty", ("empty",)),
        ("--data.source", f"images:{tmp_path}/texts", ("texts", ".jpg")),
        ("--data.source", f"images:{tmp_path}/none", ("none",)),
        ("--data.source", f"images:{tmp_path}/half", ("half",)),
        ("--data.image-size", "None", ("image_size",)),
        ("--data.image-labels", "tags", ("image_labels",)),
        ("--teacher.source", f"dinov2:{tmp_path}/empty", ("empty",)),
        ("--teacher.source", f"torchvision:resnet18@{tmp_path}/weights.pth", ("safetensors",)),
        ("--teacher.source", "torchvision:alexnet@x.safetensors", ("alexnet", "resnet18")),
        ("--teacher.source", "python:os.system", ("runs code", ".py")),
        ("--teacher.source", "minilm", ("texts",)),
        ("--teacher.side", "0", ("teacher.side",)),
        ("--initial", "torchvision:resnet18@x.safetensors", ("x.safetensors",)),
    ):
        words = [word for pair in good.items() for word in pair]
        words += [*map(str, SHORT), option, value, "--workdir", tmp_path / "new"]
        status, output, complaint = command("distill", *words)
        shown = f"{option} {value}: {status} {output} {complaint}"
        assert (status, complaint.count("\n")) == (2, 1), shown
        assert all(name in complaint for name in names), shown
        assert not (tmp_path / "new").exists(), shown


@pytest.mark.nightly
def test_teachers_that_are_functions(tmp_path, folder, run, command, monkeypatch):
    """An ONNX file is timed beside its student; a function of Python is named by --config."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    monkeypatch.syspath_prepend(tmp_path)
    assert command("export", run, "--format", "onnx")[0] == 0
    words = ("--data.source", f"images:{folder}/pictures", *map(str, SHORT))
    onnx = ("--teacher.source", f"onnx:{run}/onnx/model.onnx")
    assert command("distill", *words, *onnx, "--workdir", tmp_path / "onnx")[0] == 0
    assert command("export", tmp_path / "onnx", "--format", "onnx")[0] == 0
    assert "the teacher as an ONNX file " in (tmp_path / "onnx/onnx/README.md").read_text()

    (tmp_path / "colours.py").write_text("def mean(x):\n    return x.mean((1, 2)) / 255.0\n")
    config = tmp_path / "config.py"
    source = 'Config(teacher=Teacher(source="python:colours.mean"))'
    config.write_text(f"from pcjax.config import *\nconfig = {source}\n")
    assert command("distill", config, *words, "--workdir", tmp_path / "run")[0] == 0
    monkeypatch.setattr("pcjax.config.TRUSTED", set())
    for job in ("evaluate", "report"):
        status, _, complaint = command(job, tmp_path / "run")
        assert status == 2
        assert "--config" in complaint
    for job in ("evaluate", "report"):
        assert command(job, tmp_path / "run", "--config", config)[0] == 0
        monkeypatch.setattr("pcjax.config.TRUSTED", set())
