"""Configs are checked when they are built, stored as JSON, and found again in it."""

import dataclasses
import json
import pathlib

import pytest

from pcjax._checks import RequestError
from pcjax.config import Config, Data, Evaluation, Loss, Model, Ramp, Teacher, Training, read
from pcjax.loss_registry import TERMS
from pcjax.run import from_the_root

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_files_build_and_come_back_from_json(path):
    config = read(path)
    assert Config.from_json(config.to_json()) == config
    docstring = path.read_text().split('"""')[1]
    for part in ("Purpose:", "Command:", "Expected:", "Cost:"):
        assert part in docstring
    assert f"configs/{path.name}" in docstring


def test_the_digits_are_the_default():
    assert read(next(path for path in CONFIGS if path.stem == "digits")) == Config()


def test_equal_configs_have_equal_digests_and_others_have_not():
    assert Config().digest() == Config.from_json(Config().to_json()).digest()
    assert Config().digest() != dataclasses.replace(Config(), training=Training(seed=1)).digest()


def test_files_are_named_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config(
        data=Data(source="arrays:a/b.npz"),
        teacher=Teacher(run="../runs/teacher"),
        evaluation=Evaluation(other="tfds:mnist", other_dir="gs://bucket/tfds"),
    )
    found = from_the_root(config)
    assert found.data == Data(source=f"arrays:{tmp_path / 'a' / 'b.npz'}")
    assert found.teacher == Teacher(run=str(tmp_path.parent / "runs" / "teacher"))
    assert found.evaluation == config.evaluation
    assert from_the_root(found) == found
    assert from_the_root(Config()) == Config()


def without(stored, path):
    """The stored config as it was before there was that field."""
    *sections, name = path
    for section in sections:
        stored = stored[section]
    stored.pop(name)


@pytest.mark.parametrize(
    "path",
    [
        ("data", "unseen"),
        ("data",),
        ("comparison",),
        ("evaluation", "corruptions"),
        ("teacher", "training", "watchdog_seconds"),
        ("teacher", "model", "width"),
        ("student", "width"),
        ("training", "bad_steps"),
        ("losses", 0, "maps"),
        ("losses", 0, "arguments", "temperature", "shape"),
    ],
)
def test_a_config_stored_before_there_was_a_field_is_the_same_config(path, tmp_path):
    config = Config(
        training=Training(seed=3), losses=(Loss(arguments={"temperature": Ramp(0.3, 0.1)}),)
    )
    stored = json.loads(config.to_json())
    without(stored, path)
    (tmp_path / "config.json").write_text(json.dumps({"job": "distill", "config": stored}))
    found = read(tmp_path / "config.json")
    assert found == config
    assert found.digest() == config.digest()


def test_every_field_that_is_not_as_by_default_counts():
    base = json.loads(Config().to_json())
    digests = {Config().digest()}
    changes = [
        ("training", "epochs", 30),
        ("training", "save_every", 500),
        ("student", "features", None),
    ]
    changes += [
        ("student", "widths", None),
        ("teacher", "live", True),
        ("data", "flip", True),
        ("data", "crop", 1),
    ]
    for section, field, value in changes:
        digests.add(
            Config.from_json(json.dumps(base | {section: base[section] | {field: value}})).digest()
        )
    digests.add(Config(training=Training()).digest())
    digests.add(Config(student=Model()).digest())
    digests.add(Config(losses=(Loss(arguments={"temperature": 0.1}), Loss("pkt"))).digest())
    assert len(digests) == len(changes) + 4


def test_the_order_of_arguments_does_not_count():
    given = {"temperature": 0.1, "dissimilarity": "cosine"}
    turned = dict(reversed(given.items()))
    assert (
        Config(losses=(Loss(arguments=given),)).digest()
        == Config(losses=(Loss(arguments=turned),)).digest()
    )


def test_ramps_and_tuples_come_back_as_what_they_were():
    loss = Loss(
        weight=Ramp(1.0, 0.0),
        arguments={"temperature": Ramp(0.5, 0.1, shape="geometric"), "power": 2},
    )
    config = Config(losses=(loss,), student=Model("mlp", widths=(8, 4)))
    assert Config.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Data(part="x"), "got data.part 'x': expected float"),
        (lambda: Data(validation=None), "got data.validation None: expected float"),
        (lambda: Model(widths=5), "got widths 5: expected tuple[int, ...] | None"),
        (lambda: Model(widths=[8, 4.5]), "got widths.1 4.5: expected int"),
        (lambda: Training(warmup="a"), "got training.warmup 'a': expected float"),
        (lambda: Training(batch=True), "got training.batch True: expected int"),
        (lambda: Loss(weight="x"), "got weight 'x': expected float | pcjax.config.Ramp"),
        (
            lambda: Loss(arguments={"temperature": [1]}),
            "got arguments.temperature [1]: expected bool | int | float",
        ),
        (lambda: Ramp("a", 1.0), "got start 'a': expected float"),
        (lambda: Config(losses=("pkt",)), "got losses.0 'pkt': expected Loss"),
        (lambda: Config(training={"batch": 3}), "got training {'batch': 3}: expected Training"),
        (
            lambda: Evaluation(corruptions=3),
            "got evaluation.corruptions 3: expected tuple[str, ...]",
        ),
        (lambda: Training(batch=2), "got training.batch 2: expected at least 3"),
        (lambda: Training(epochs=0), "got training.epochs 0"),
        (lambda: Training(learning_rate=-1.0), "got training.learning_rate -1.0"),
        (
            lambda: Training(optimiser="adam"),
            "unknown training.optimiser 'adam': expected one of 'adamw', 'sgd'",
        ),
        (lambda: Training(parallel="pjit"), "unknown training.parallel 'pjit'"),
        (lambda: Training(compute="float16"), "unknown training.compute 'float16'"),
        (lambda: Training(warmup=1.0), "got training.warmup 1.0"),
        (lambda: Training(clip=0.0), "got training.clip 0.0"),
        (lambda: Training(seed=-1), "got training.seed -1"),
        (lambda: Data(validation=1.0), "got data.validation 1.0"),
        (lambda: Data(part=0.0), "got data.part 0.0: expected a share, above 0 and at most 1"),
        (lambda: Data(crop=-1), "got data.crop -1"),
        (lambda: Model("resnet21"), "unknown model 'resnet21': expected one of 'mlp'"),
        (
            lambda: Model("resnet20", features=8),
            "got features for the model 'resnet20': its options are none",
        ),
        (
            lambda: Loss("perception"),
            "unknown loss 'perception': expected one of 'perception_coherence'",
        ),
        (
            lambda: Loss("proto2proto"),
            "proto2proto cannot be asked for: it compares networks of prototypes",
        ),
        (
            lambda: Loss(arguments={"temprature": 0.1}),
            "unknown argument of perception_coherence 'temprature'",
        ),
        (lambda: Loss(), "got no temperature among the arguments of perception_coherence"),
        (lambda: Loss("kd", bank=5), "got bank 5 for the loss kd: it has none"),
        (lambda: Loss("crd", bank=5), "got bank 5 for the loss crd: it has none"),
        (
            lambda: Loss("similarity_kl"),
            "the loss similarity_kl compares with past examples: give a bank",
        ),
        (
            lambda: Loss("kd", head="linear"),
            "got head 'linear' for the loss kd, which compares logits",
        ),
        (lambda: Loss("pkt", head="lienar"), "unknown head 'lienar'"),
        (
            lambda: Loss("pkt", head="conv"),
            "got head 'conv' for the loss pkt, which compares features",
        ),
        (
            lambda: Loss("hint", head="conv"),
            "got head 'conv' for the loss hint, which compares features",
        ),
        (lambda: Loss("pkt", head="variational"), "got head 'variational' for the loss pkt"),
        (lambda: Loss("variational_information"), "it needs the head 'variational'"),
        (
            lambda: Loss("pkt", maps=("stage1", "stage1")),
            "for the loss pkt: it compares features, leave them out",
        ),
        (
            lambda: Loss("hint", maps=("stage1",)),
            "expected two names, the student's and the teacher's",
        ),
        (
            lambda: Config(losses=(Loss("attention_transfer"),)),
            "compares maps, which only a teacher that sees every",
        ),
        (
            lambda: Config(losses=(Loss("locality_preserving"),)),
            "got locality_preserving as the only loss",
        ),
        (
            lambda: Config(losses=(Loss("shared_classifier"),), teacher=Teacher(features="b")),
            "class scores need a model",
        ),
        (lambda: Ramp(1.0, 0.0, until=0.0), "got until 0.0"),
        (lambda: Ramp(1.0, 0.0, shape="geometric"), "got a geometric ramp from 1.0 to 0.0"),
        (lambda: Teacher(run="a", features="b"), "got both teacher.run and teacher.features"),
        (lambda: Teacher(features="b", live=True), "got teacher.live with teacher.features"),
        (lambda: Data(unseen=1), "got data.unseen 1: expected 0 or at least 2"),
        (lambda: Data(unseen=-2), "got data.unseen -2"),
        (lambda: Evaluation(neighbours=0), "got evaluation.neighbours 0"),
        (
            lambda: Evaluation(other_dir="x"),
            "got evaluation.other_dir 'x' without evaluation.other",
        ),
        (
            lambda: Evaluation(corruptions=("fog",)),
            "unknown corruption 'fog': expected one of 'gaussian_noise'",
        ),
        (lambda: Config(losses=()), "got no losses"),
        (
            lambda: Config(losses=(Loss("kd"),), teacher=Teacher(features="b")),
            "class scores need a model",
        ),
    ],
)
def test_what_cannot_be_is_refused_when_built(build, message):
    with pytest.raises(RequestError) as caught:
        build()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["training"].update(bach=3),
            "unknown field 'training.bach': expected one of 'training.epochs'",
        ),
        (lambda c: c["training"].update(batch="many"), "got training.batch 'many': expected int"),
        (lambda c: c["training"].update(batch=True), "got training.batch True: expected int"),
        (
            lambda c: c["training"].update(learning_rate=[]),
            "got training.learning_rate []: expected float",
        ),
        (lambda c: c["data"].update(flip=1), "got data.flip 1: expected bool"),
        (lambda c: c["training"].update(parallel="pjit"), "got training.parallel 'pjit'"),
        (lambda c: c["student"].update(widths=[8, "x"]), "got student.widths"),
        (lambda c: c["losses"][0]["arguments"].update(temperature={"start": 1.0}), "missing"),
        (lambda c: c.update(losses={}), "got losses {}"),
        (lambda c: c["training"].update(epochs=-1), "got training.epochs -1"),
    ],
)
def test_stored_configs_are_checked_by_field(change, message):
    stored = json.loads(Config().to_json())
    change(stored)
    with pytest.raises(RequestError) as caught:
        Config.from_json(json.dumps(stored))
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "[", "[]", "null", '{"job": 3, "config": {}}', "[" * 100_000])
def test_a_file_that_is_no_config_is_refused(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(RequestError, match=r"config\.json"):
        read(path)


@pytest.mark.parametrize(
    "line", ["def f(", "1 / 0", "from pcjax.config import Training; Training(bach=3)"]
)
def test_a_python_file_that_fails_is_refused_in_a_line(line, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(line)
    with pytest.raises(RequestError, match=r"mine\.py: \w+Error: "):
        read(path)


def test_a_python_file_must_set_config(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("confg = 3\n")
    with pytest.raises(RequestError, match="sets no `config`"):
        read(path)
    with pytest.raises(RequestError, match="no config"):
        read(tmp_path / "other.py")


def test_every_term_names_its_arguments():
    for name, term in TERMS.items():
        assert not {"student", "teacher", "where", "axis_name", "reduce_fn"} & set(
            term.arguments
        ), name
