"""Configs are checked when they are built, and stored as JSON without loss."""

import dataclasses
import json
import pathlib

import pytest

from pcjax import overrides
from pcjax._checks import RequestError
from pcjax.config import (
    Config,
    Contender,
    Data,
    Evaluation,
    Loss,
    Model,
    Ramp,
    Teacher,
    Training,
    read_config,
    recipe,
)
from pcjax.losses.registry import RECIPES

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_files_build_and_are_restored_from_json(path):
    config = read_config(path)
    assert Config.from_json(config.to_json()) == config
    docstring = path.read_text().split('"""')[1]
    for part in ("Purpose:", "Command:", "Expected:", "Cost:"):
        assert part in docstring
    assert path.relative_to(ROOT).as_posix() in docstring


def test_the_digits_are_the_default():
    assert read_config(next(path for path in CONFIGS if path.stem == "digits")) == Config()


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_valid_config(name):
    Contender(name, recipe(name))


def test_ramps_and_tuples_are_restored_as_they_were():
    temperature = Ramp(0.5, 0.1, shape="geometric")
    loss = Loss(weight=Ramp(1.0, 0.0), arguments={"temperature": temperature, "power": 2})
    config = Config(losses=(loss,), student=Model("mlp", {"widths": (8, 4)}))
    assert Config.from_json(config.to_json()) == config


def test_only_what_decides_the_result_changes_the_digest():
    base = Config()
    same = [
        dataclasses.replace(base, training=dataclasses.replace(base.training, devices=1, keep=5)),
        dataclasses.replace(base, other_versions=True),
        Config.from_json(base.to_json()),
        Config(losses=(Loss(arguments={}),)),
    ]
    different = [
        dataclasses.replace(base, training=Training(seed=1)),
        dataclasses.replace(base, training=Training()),
        dataclasses.replace(base, student=Model()),
        dataclasses.replace(base, data=Data(flip=True)),
        dataclasses.replace(base, teacher=Teacher(live=True)),
        dataclasses.replace(base, losses=recipe("rkd")),
        dataclasses.replace(base, evaluation=Evaluation(dissimilarity="euclidean")),
    ]
    assert {config.digest() for config in same} == {base.digest()}
    assert len({config.digest() for config in [base, *different]}) == 1 + len(different)
    arguments = {"temperature": 0.2, "power": 2}
    reverse = dict(reversed(arguments.items()))
    one, other = (Config(losses=(Loss(arguments=a),)).digest() for a in (arguments, reverse))
    assert one == other


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config(
        data=Data(source="arrays:a/b.npz"),
        teacher=Teacher(run="../runs/teacher"),
        evaluation=Evaluation(other="tfds:mnist", other_dir="gs://bucket/tfds"),
    )
    absolute = config.with_absolute_paths()
    assert absolute.data == Data(source=f"arrays:{tmp_path / 'a' / 'b.npz'}")
    assert absolute.teacher == Teacher(run=str(tmp_path.parent / "runs" / "teacher"))
    assert absolute.evaluation == config.evaluation
    assert absolute.with_absolute_paths() == absolute
    assert Config().with_absolute_paths() == Config()


REFUSED = {
    lambda: Data(part="x"): "data.part='x' is not of type float",
    lambda: Data(validation=None): "data.validation=None is not of type float",
    lambda: Data(validation=1.0): "data.validation=1.0 is not between 0 and 1",
    lambda: Data(part=0.0): "data.part=0.0 is not a share",
    lambda: Data(crop=-1): "got data.crop -1",
    lambda: Data(unseen=1): "data.unseen must be 0 or at least 2",
    lambda: Data(source="a\0b"): "null character",
    lambda: Model("resnet21"): "unknown model 'resnet21' (did you mean 'resnet32'?)",
    lambda: Model("mlp", {"width": 8}): "unknown option of mlp 'width'",
    lambda: Model("mlp", {"widths": 2.5}): "is not a whole number",
    lambda: Model("mlp", {"features": 2**30}): "exceeds 2^20",
    lambda: Training(warmup="a"): "training.warmup='a' is not of type float",
    lambda: Training(batch=True): "training.batch=True is not of type int",
    lambda: Training(batch=2): "training.batch=2 is below 3",
    lambda: Training(epochs=0): "got training.epochs 0",
    lambda: Training(learning_rate=-1.0): "got training.learning_rate -1.0",
    lambda: Training(learning_rate=1e-60): "is not a number that float32 holds",
    lambda: Training(optimiser="adam"): "unknown training.optimiser 'adam' (did you mean 'adamw'?)",
    lambda: Training(parallel="pjit"): "unknown training.parallel 'pjit'",
    lambda: Training(warmup=1.0): "training.warmup=1.0 is not in [0, 1)",
    lambda: Training(clip=0.0): "got training.clip 0.0",
    lambda: Training(watchdog_seconds=1e9): "longer than a year",
    lambda: Loss("perception"): "unknown loss 'perception' (did you mean 'perception_coherence'?)",
    lambda: Loss("proto2proto", head="linear"): "it compares maps and takes 'none'",
    lambda: Loss(weight="x"): "weight='x' is not of type float | Ramp",
    lambda: Loss(weight=-1.0): "weight=-1.0 of the loss perception_coherence is negative",
    lambda: Loss(arguments={"temprature": 0.1}): "(did you mean 'temperature'?)",
    lambda: Loss(arguments={"temperature": [1]}): "arguments.temperature=[1] is not of type",
    lambda: Loss("kd", bank=5): "The loss kd has no bank",
    lambda: Loss("crd", bank=5): "The loss crd has no bank",
    lambda: Loss("crd", arguments={"class_aware": 1}): "class_aware=1 of the loss crd must be",
    lambda: Loss("similarity_kl"): "give a bank of 1024 or more",
    lambda: Loss("kd", head="linear"): "it compares logits and takes 'none'",
    lambda: Loss("pkt", head="lienar"): "unknown head 'lienar'",
    lambda: Loss("pkt", head="conv"): "it compares features and takes 'none' or 'linear'",
    lambda: Loss("variational_information"): "takes 'variational'",
    lambda: Loss("pkt", maps=("stage1", "stage1")): "compares features; remove maps",
    lambda: Loss("hint", maps=("stage1",)): "must name the student's and the teacher's",
    lambda: Ramp("a", 1.0): "start='a' is not of type float",
    lambda: Ramp(1.0, 0.0, until=0.0): "until=0.0 is not a share of the steps",
    lambda: Ramp(1.0, 0.0, shape="geometric"): "needs positive numbers",
    lambda: Teacher(run="a", features="b"): "exclude each other",
    lambda: Teacher(features="b", live=True): "teacher.live needs a model",
    lambda: Teacher(run=""): "teacher.run is empty",
    lambda: Evaluation(neighbours=0): "got evaluation.neighbours 0",
    lambda: Evaluation(other_dir="x"): "needs evaluation.other",
    lambda: Evaluation(corruptions=("fog",)): "unknown corruption 'fog'",
    lambda: Evaluation(dissimilarity="cosin"): "(did you mean 'cosine'?)",
    lambda: Contender("a/b", recipe("kd")): "cannot name a folder",
    lambda: Config(losses=()): "losses is empty",
    lambda: Config(losses=("pkt",)): "losses.0='pkt' is not of type Loss",
    lambda: Config(losses=recipe("attention_transfer")): "set teacher.live",
    lambda: Config(losses=(Loss("locality_preserving"),)): "add a loss that separates examples",
    lambda: Config(losses=recipe("kd"), teacher=Teacher(features="b")): "needs class scores",
}


@pytest.mark.bad_input
@pytest.mark.parametrize("build", REFUSED, ids=REFUSED.values())
def test_impossible_configs_are_refused_when_built(build):
    with pytest.raises(RequestError) as caught:
        build()
    assert REFUSED[build] in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["training"].update(bach=3), "(did you mean 'training.batch'?)"),
        (lambda c: c["training"].update(batch="many"), "training.batch='many' is not of type int"),
        (lambda c: c["training"].update(batch=0), "got training.batch 0"),
        (lambda c: c["losses"][0].update(arguments={"x": 1}), "losses.0: unknown argument"),
        (lambda c: c["losses"].append(3), "losses.1=3 is not of type Loss"),
        (lambda c: c.update(student=[]), "student=[] is not of type Model; give --student.name."),
    ],
)
def test_impossible_json_is_refused_by_name(change, message):
    stored = json.loads(Config().to_json())
    change(stored)
    with pytest.raises(RequestError) as caught:
        Config.from_json(json.dumps(stored))
    assert message in str(caught.value)


def test_files_that_are_no_config_are_refused(tmp_path):
    for name, text, message in [
        ("none.py", None, "There is no config"),
        ("a.txt", "", "is not a config"),
        ("b.py", "x = 1", "does not set config"),
        ("c.py", "import nothing_of_that_name", "ModuleNotFoundError"),
        ("d.py", "from pcjax.config import *\nTraining(batch=0)", "got training.batch 0"),
        ("e.json", "[]", "does not hold a job and its config"),
        ("f.json", '{"job": "distill", "job": "teach", "config": {}}', "appears twice"),
        ("g.json", '{"job": "steal", "config": {}}', "unknown job 'steal'"),
        ("h.json", "{", "is not valid JSON"),
    ]:
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        with pytest.raises(RequestError) as caught:
            read_config(path)
        assert message in str(caught.value), name


def overridden(line, job="distill", base=None):
    return overrides.apply(base or Config(), job, overrides.parse(line.split()))


def test_options_override_fields():
    config = overridden(
        "--training.batch 64 --training.learning-rate=1e-3 --data.flip --teacher.features None "
        "--student.widths 8 4 --student.features 3 --losses.0.temperature 0.2 "
        "--losses.0.arguments.weighting neighbours --evaluation.corruptions gaussian_noise,contrast"
    )
    assert config.training.batch == 64
    assert config.training.learning_rate == 1e-3
    assert config.data.flip
    assert config.student == Model("mlp", {"features": 3, "widths": (8, 4)})
    assert config.losses[0].arguments == {"temperature": 0.2, "weighting": "neighbours"}
    assert config.evaluation.corruptions == ("gaussian_noise", "contrast")
    ramp = overridden('--losses.0.weight {"start":1,"end":0.5}').losses[0].weight
    assert ramp == Ramp(1.0, 0.5)


def test_epochs_stand_in_place_of_the_steps_of_a_config():
    base = Config(training=Training(steps=7))
    for line, steps in (
        ("--training.epochs 3", None),
        ("--training.epochs 3 --training.steps 5", 5),
        ("--training.batch 64", 7),
        ("--teacher.training.epochs 3", 7),
    ):
        assert overridden(line, base=base).training.steps == steps


def test_another_model_or_loss_does_not_keep_the_options_of_the_default():
    config = overridden("--student.features 32 --student.name mobilenetv2")
    assert config.student == Model("mobilenetv2", {"features": 32})
    base = Config(losses=(Loss(arguments={"temperature": 0.3}),))
    assert overridden("--losses.0.name pkt", base=base).losses == (Loss("pkt"),)


def test_losses_name_recipes():
    assert overridden("--losses rkd").losses == recipe("rkd")
    assert overridden("--losses pkt,kd").losses == recipe("pkt") + recipe("kd")
    contenders = overridden("--losses rkd,pkt --seeds 2", "compare").comparison
    assert [contender.name for contender in contenders.contenders] == ["rkd", "pkt"]
    assert contenders.seeds == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "--training.bach 3",
            "unknown option '--training.bach' (did you mean '--training.batch'?)",
        ),
        ("--epochs 3", "unknown option '--epochs'"),
        ("--training.batch many", "training.batch='many' is not of type int"),
        ("--training.batch", "--training.batch has no value"),
        ("--losses.3.weight 1", "there are 1 entries"),
        ("--losses rdk", "unknown loss 'rdk' (did you mean 'rkd'?)"),
        ("--losses", "--losses names no loss"),
        ("--training.batch.x 3", "training.batch has no field 'x'"),
        ("extra", "Unexpected 'extra'"),
        ("--seeds 3", "--seeds is for `pcjax compare`"),
    ],
)
def test_wrong_options_are_refused_by_name(line, message):
    with pytest.raises(RequestError) as caught:
        overridden(line)
    assert message in str(caught.value)


def test_every_field_is_described():
    text = overrides.describe_fields()
    for name in ("--training.save-every", "--data.source", "--losses.0.head", "--teacher.run"):
        assert name in text
