"""Everything a job can be told: frozen dataclasses, checked when they are built.

A config file is Python that sets `config = Config(...)`; it is code and is run as such. What a run stores is JSON,
which is only parsed. `pcjax JOB CONFIG.py --section.field value` overrides single fields.
"""

import dataclasses
import json
import math
import pathlib
import re
import runpy
import typing
from typing import Any, Literal

from pcjax import _checks, _fields
from pcjax._checks import RequestError
from pcjax.data import CORRUPTIONS
from pcjax.loss_registry import TERMS, UNNAMED, needs_labels
from pcjax.models import OPTIONS, require_known

JOBS = ("distill", "teach", "compare", "tune")
# Steps are counted in int32, seeds become keys of 32 bits.
MOST = 2**31 - 1
# Past these nothing is meant, and memory would end before anything is said.
WIDEST, LARGEST_BANK, LARGEST_BATCH, LARGEST_SIDE, MOST_RUNS = 2**20, 2**24, 2**16, 2**14, 10_000
LARGEST_FILE = 2**24  # bytes
LONGEST_WATCH = 366 * 24 * 3600.0


def _require_at_least(what: str, value: int | float | None, least: int | float) -> None:
    fits = value is None or (math.isfinite(value) and value >= least)
    _checks.require(fits, f"got {what} {value!r}: expected a number of at least {least}")


@dataclasses.dataclass(frozen=True)
class Ramp:
    """A number that moves while a model is trained."""

    start: float
    end: float
    until: float = 1.0
    """the share of the training's steps after which `end` is reached"""
    shape: Literal["linear", "cosine", "geometric"] = "linear"

    def __post_init__(self):
        _fields.require_types(self)
        _checks.require(
            0 < self.until <= 1,
            f"got until {self.until!r}: expected a share of the steps, in (0, 1]",
        )
        _checks.require_name("shape", self.shape, ("linear", "cosine", "geometric"))
        geometric = self.shape != "geometric" or (self.start > 0 and self.end > 0)
        _checks.require(
            geometric,
            f"got a geometric ramp from {self.start} to {self.end}: expected positive numbers",
        )


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the examples come from, and what is done to a training image."""

    source: str = "digits"
    """digits | tfds:NAME | arrays:PATH"""
    data_dir: str | None = None
    """where TFDS keeps its prepared data sets; None: its own default"""
    image_size: int | None = None
    """side that images are resized to; needed where they differ in size"""
    part: float = 1.0
    """share of all examples that is used; less to try things out quickly"""
    validation: float = 0.1
    """share of the training examples kept aside; what is chosen is chosen on them"""
    crop: int = 0
    """pixels of padding before a random crop back to the image's size"""
    flip: bool = False
    """mirror every other image at random"""
    unseen: int = 0
    """so many classes, the last ones by number, are in no training; their test examples are judged apart"""

    def __post_init__(self):
        _fields.require_types(self, "data")
        _checks.require_whole("data.crop", self.crop, 0, LARGEST_SIDE)
        some = self.unseen != 1
        _checks.require(
            some,
            "got data.unseen 1: expected 0 or at least 2, within one class all neighbours are right",
        )
        _checks.require_whole("data.unseen", self.unseen, 0, MOST)
        if self.image_size is not None:
            _checks.require_whole("data.image_size", self.image_size, 1, LARGEST_SIDE)
        some = 0 < self.part <= 1
        _checks.require(
            some, f"got data.part {self.part!r}: expected a share, above 0 and at most 1"
        )
        share = 0 < self.validation < 1
        _checks.require(
            share, f"got data.validation {self.validation!r}: expected a share between 0 and 1"
        )


@dataclasses.dataclass(frozen=True)
class Model:
    """An architecture of pcjax.models; a field that is None is the architecture's own default."""

    name: str = "mlp"
    features: int | None = None
    """how many features it gives"""
    widths: tuple[int, ...] | None = None
    """of its layers"""
    width: float | None = None
    """factor on the number of its channels"""

    def __post_init__(self):
        _fields.require_types(self)
        require_known(self.name)
        known = OPTIONS.get(self.name, ())
        for option in self.options():
            expected = " or ".join(known) or "none, all of it is in its name"
            _checks.require(
                option in known,
                f"got {option} for the model {self.name!r}: its options are {expected}",
            )
        if self.features is not None:
            _checks.require_whole("features", self.features, 1, WIDEST)
        for width in self.widths or ():
            _checks.require_whole("width", width, 1, WIDEST, context=f" in widths {self.widths}")

    def options(self) -> dict[str, Any]:
        """What was given, as keyword arguments of the architecture."""
        given = {"features": self.features, "widths": self.widths, "width": self.width}
        return {name: value for name, value in given.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Loss:
    """One term of the weighted sum that the student minimises."""

    name: str = "perception_coherence"
    weight: float | Ramp = 1.0
    head: Literal["none", "linear", "mlp", "orthogonal", "conv", "variational"] = "none"
    """a learnt map of the student's features or maps into the teacher's dimension, for this loss alone"""
    bank: int = 0
    """how many past examples are remembered, for the losses that compare with more than the batch"""
    maps: tuple[str, str] | None = None
    """the student's and the teacher's maps that are compared, as ("stage2", "stage3"); None: the last of both or, of
    losses that take either, the features"""
    arguments: dict[str, bool | int | float | str | Ramp] = dataclasses.field(default_factory=dict)
    """the loss's own keyword arguments"""

    def __post_init__(self):
        _fields.require_types(self)
        unnamed = f"the loss {self.name} cannot be asked for: it {UNNAMED.get(self.name)}"
        _checks.require(self.name not in UNNAMED, unnamed)
        _checks.require_name("loss", self.name, TERMS)
        _checks.require_name("head", self.head, _fields.choices(Loss)["head"])
        _checks.require_whole("bank", self.bank, 0, LARGEST_BANK)
        for number in (
            (self.weight.start, self.weight.end)
            if isinstance(self.weight, Ramp)
            else (self.weight,)
        ):
            _require_at_least("weight", number, 0)
        term = TERMS[self.name]
        sized = term.memory is not None and term.memory.sized
        if self.bank:
            _checks.require(
                sized, f"got bank {self.bank} for the loss {self.name}: it has none, leave it out"
            )
        elif term.memory is not None and sized:
            missing = (
                f"the loss {self.name} compares with past examples: give a bank, of 1024 or more"
            )
            _checks.require(not term.memory.required, missing)
        if self.maps is not None:
            got = f"got maps {self.maps!r} for the loss {self.name}"
            _checks.require(
                "maps" in term.kinds, f"{got}: it compares {term.kinds[0]}, leave them out"
            )
            _checks.require(
                len(self.maps) == 2, f"{got}: expected two names, the student's and the teacher's"
            )
        self._check_head()
        for name, value in self.arguments.items():
            _checks.require_name(f"argument of {self.name}", name, term.arguments)
            flag = name not in term.flags or isinstance(value, bool)
            _checks.require(
                flag, f"got {name} {value!r} for the loss {self.name}: expected True or False"
            )
            fits = not isinstance(value, int) or abs(value) <= MOST
            _checks.require(
                fits, f"got {name} {value} for the loss {self.name}: expected at most {MOST}"
            )
        for name in term.required:
            given = f"got no {name} among the arguments of {self.name}"
            _checks.require(name in self.arguments, f"{given}: it has no default, give one")

    @property
    def kind(self) -> str:
        """What of the models' output is compared: features, maps, logits or labels."""
        return TERMS[self.name].kind(self.maps is not None)

    def _check_head(self) -> None:
        wanted, got = TERMS[self.name].head, f"got head {self.head!r} for the loss {self.name}"
        if wanted is not None:
            _checks.require(self.head == wanted, f"{got}: it needs the head {wanted!r}")
            return
        possible = {
            "features": ("none", "linear", "mlp", "orthogonal"),
            "maps": ("none", "linear", "mlp", "conv"),
        }
        listed = possible.get(self.kind, ("none",))
        expected = " or ".join(map(repr, listed))
        _checks.require(
            self.head in listed, f"{got}, which compares {self.kind}: expected {expected}"
        )


MEANS = (
    "devices",
    "keep",
    "watchdog_seconds",
    "tensorboard",
)  # of a training: nothing that is learnt depends on them


@dataclasses.dataclass(frozen=True)
class Training:
    """How a model is trained."""

    epochs: int = 30
    steps: int | None = None
    """how many steps, in place of epochs"""
    batch: int = 256
    """examples a step, on all devices together"""
    optimiser: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["cosine", "constant", "steps"] = "cosine"
    """steps: a tenth after 5/8, 3/4 and 7/8 of the training"""
    warmup: float = 0.05
    """share of the steps in which the learning rate rises from 0"""
    weight_decay: float = 1e-4
    momentum: float = 0.9
    """of sgd"""
    clip: float | None = None
    """largest norm of the gradient"""
    seed: int = 0
    parallel: Literal["pmap", "shard_map"] = "pmap"
    devices: int | None = None
    """how many devices of all processes together; None: all there are"""
    compute: Literal["float32", "bfloat16"] = "float32"
    """what the models compute in; parameters, statistics, features and losses are float32"""
    log_every: int = 50
    save_every: int = 500
    """steps between checkpoints; each is judged on the validation examples, which decides what counts as best"""
    keep: int = 2
    """how many of the latest checkpoints stay, beside the best one"""
    choose: Literal["best", "last"] = "best"
    """which checkpoint the trained model is taken from: the best on the validation examples, or the last one"""
    spike: float | None = 30.0
    """a step is not taken whose gradient is so many times as long as was ever usual, or whose examples are so many
    times as large as all of them are; None: every finite one is"""
    bad_steps: int = 20
    """so many steps in a row that are not taken (not finite, a spike, all examples alike) stop the training"""
    watchdog_seconds: float | None = None
    """a step that takes longer ends the command; None: half an hour where there are several devices, else no limit"""
    tensorboard: bool = False
    """write metrics for TensorBoard too; needs `pip install "pcjax[tensorboard]"`"""

    def __post_init__(self):
        _fields.require_types(self, "training")
        for what in ("epochs", "batch", "log_every", "save_every", "keep", "bad_steps"):
            _checks.require_whole(f"training.{what}", getattr(self, what), 1, MOST)
        for what in ("steps", "devices"):
            if getattr(self, what) is not None:
                _checks.require_whole(f"training.{what}", getattr(self, what), 1, MOST)
        _checks.require_whole("training.seed", self.seed, 0, MOST)
        enough = self.batch >= 3
        _checks.require(
            enough,
            f"got training.batch {self.batch}: expected at least 3, one neighbour has no order",
        )
        _checks.require_positive("training.learning_rate", self.learning_rate)
        _checks.require_positive("training.clip", self.clip, optional=True)
        if self.spike is not None:
            _require_at_least("training.spike", self.spike, 1)
        _checks.require_positive("training.watchdog_seconds", self.watchdog_seconds, optional=True)
        waits = self.watchdog_seconds is None or self.watchdog_seconds <= LONGEST_WATCH
        got = f"got training.watchdog_seconds {self.watchdog_seconds}"
        _checks.require(waits, f"{got}: expected a year at most, or None")
        _require_at_least("training.weight_decay", self.weight_decay, 0)
        for what, names in _fields.choices(type(self)).items():
            _checks.require_name(f"training.{what}", getattr(self, what), names)
        for what in ("warmup", "momentum"):
            share = 0 <= getattr(self, what) < 1
            _checks.require(
                share, f"got training.{what} {getattr(self, what)!r}: expected a number in [0, 1)"
            )


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The model whose representation is transferred, and where it comes from."""

    model: Model = dataclasses.field(
        default_factory=lambda: Model("mlp", features=64, widths=(512, 512))
    )
    run: str | None = None
    """folder of a `pcjax teach` run; None: it is trained first, with labels, inside the run's own folder"""
    features: str | None = None
    """a .npz with its features (train, validation, test), as `pcjax embed` writes, in place of a model"""
    live: bool = False
    """True: sees every augmented image; False: its features of the plain images are computed once"""
    training: Training = dataclasses.field(default_factory=lambda: Training(save_every=50))

    def __post_init__(self):
        _fields.require_types(self, "teacher")
        for what in ("run", "features"):
            _checks.require(
                getattr(self, what) != "",
                f"got an empty teacher.{what}: expected a path, or leave it out",
            )
        one = self.run is None or self.features is None
        _checks.require(one, "got both teacher.run and teacher.features: expected one of them")
        possible = not (self.live and self.features is not None)
        _checks.require(
            possible, "got teacher.live with teacher.features: a live teacher needs a model"
        )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a representation is judged."""

    neighbours: int = 10
    """how many neighbours vote in k-NN, and are compared in coherence"""
    batch: int = 512
    other: str | None = None
    """another data set, as data.source, that the frozen representations are judged on by its labels"""
    other_dir: str | None = None
    """where TFDS keeps that one; None: data.data_dir"""
    corruptions: tuple[str, ...] = ()
    """what is done to test images before they are looked up among the clean training images: names, or all"""

    def __post_init__(self):
        _fields.require_types(self, "evaluation")
        _checks.require_whole("evaluation.neighbours", self.neighbours, 1, MOST)
        _checks.require_whole("evaluation.batch", self.batch, 1, LARGEST_BATCH)
        placed = self.other_dir is None or self.other is not None
        _checks.require(
            placed,
            f"got evaluation.other_dir {self.other_dir!r} without evaluation.other: give it too",
        )
        for name in self.corruptions:
            _checks.require_name("corruption", name, (*CORRUPTIONS, "all"))


def check_losses(losses: tuple[Loss, ...], teacher: Teacher) -> None:
    """Refuses losses that cannot be summed up, or not with that teacher."""
    logits = [loss.name for loss in losses if loss.kind == "logits" or TERMS[loss.name].classifier]
    possible = teacher.features is None or not logits
    _checks.require(
        possible, f"got teacher.features with {', '.join(logits)}: class scores need a model"
    )
    for loss in losses:
        seen = (
            f"the loss {loss.name} compares maps, which only a teacher that sees every image gives"
        )
        _checks.require(teacher.live or loss.kind != "maps", f"{seen}: set teacher.live")
    if losses and not any(TERMS[loss.name].alone for loss in losses):
        names = " and ".join(sorted({loss.name for loss in losses}))
        why = "a student that maps everything to one point has none to pay"
        remedy = (
            "add one that keeps examples apart, such as kd, cross_entropy or perception_coherence"
        )
        raise RequestError(f"got {names} as the only loss, and {why}: {remedy}")


@dataclasses.dataclass(frozen=True)
class Contender:
    """What one of the students that are compared minimises, in place of `losses`."""

    name: str
    losses: tuple[Loss, ...]

    def __post_init__(self):
        _fields.require_types(self)
        plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", self.name) is not None
        expected = "expected letters, digits and _ . + -, it names a folder"
        _checks.require(
            plain and len(self.name) <= 80, f"got a contender named {self.name!r}: {expected}"
        )
        _checks.require(
            len(self.losses) > 0,
            f"got no losses for the contender {self.name}: expected at least one",
        )

    def labelled(self) -> bool:
        """Whether it sees the labels of its examples."""
        return any(needs_labels(TERMS[loss.name], loss.arguments) for loss in self.losses)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What `pcjax compare` sets side by side."""

    contenders: tuple[Contender, ...] = ()
    """empty: those that --losses names, as pcjax.jobs.recipes has them"""
    seeds: int = 3
    """every contender is trained from so many first weights, the same ones for all"""
    trials: int = 8
    """how many settings of each contender `pcjax tune` tries"""

    def __post_init__(self):
        _fields.require_types(self, "comparison")
        _checks.require_whole("comparison.seeds", self.seeds, 1, MOST_RUNS)
        _checks.require_whole("comparison.trials", self.trials, 1, MOST_RUNS)
        names = [contender.name for contender in self.contenders]
        twice = sorted({name for name in names if names.count(name) > 1})
        _checks.require(
            not twice, f"got two contenders named {', '.join(twice)}: expected every name once"
        )


@dataclasses.dataclass(frozen=True)
class Config:
    """All of it. Without arguments: the embedded digits, a minute or two on two cores."""

    data: Data = dataclasses.field(default_factory=Data)
    teacher: Teacher = dataclasses.field(default_factory=Teacher)
    student: Model = dataclasses.field(
        default_factory=lambda: Model("mlp", features=16, widths=(64,))
    )
    losses: tuple[Loss, ...] = dataclasses.field(
        default_factory=lambda: (Loss("perception_coherence", arguments={"temperature": 0.1}),)
    )
    training: Training = dataclasses.field(
        default_factory=lambda: Training(epochs=100, save_every=100)
    )
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
    comparison: Comparison = dataclasses.field(default_factory=Comparison)
    other_versions: bool = False
    """go on with what other versions of pcjax or its libraries have saved; what follows may differ in last digits"""

    def __post_init__(self):
        _fields.require_types(self)
        _checks.require(len(self.losses) > 0, "got no losses: expected at least one")
        check_losses(self.losses, self.teacher)

    def to_json(self) -> str:
        """What `from_json` builds an equal one from."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """The inverse of `to_json`; unknown fields and wrong types are refused by name."""
        try:
            return _fields.decode(cls, json.loads(text), "")
        except json.JSONDecodeError as error:
            raise RequestError(f"not JSON: {error}") from error

    def essence(self) -> "Config":
        """Without what may be another when a run goes on: on how many devices, with which versions, and the like."""
        usual = {
            name: field.default
            for name, field in Training.__dataclass_fields__.items()
            if name in MEANS
        }
        taught = dataclasses.replace(
            self.teacher, training=dataclasses.replace(self.teacher.training, **usual)
        )
        own = dataclasses.replace(self.training, **usual)
        return dataclasses.replace(self, teacher=taught, training=own, other_versions=False)

    def digest(self) -> str:
        """Equal for configs of equal essence, across versions of Python and of pcjax, which may have more fields."""
        return _fields.digest(_fields.told(self.essence()))


def read(path: str | pathlib.Path) -> Config:
    """The config of a .py file, which is run, or of a stored .json."""
    path = pathlib.Path(path)
    _checks.require(
        path.is_file(),
        f"no config {path}: expected a .py file that sets `config`, or a run's config.json",
    )
    if path.suffix == ".json":
        return read_stored(path)[1]
    # runpy also runs what hides in archives and compiled files.
    _checks.require(
        path.suffix == ".py",
        f"{path} is no config: expected a .py file, which is run, or a config.json",
    )
    try:
        found = runpy.run_path(str(path)).get("config")
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever the code of a config raises
        raise RequestError(f"{path}: {type(error).__name__}: {error}") from error
    _checks.require(
        isinstance(found, Config),
        f"{path} sets no `config`: expected config = pcjax.config.Config(...)",
    )
    return typing.cast(Config, found)


def read_stored(path: pathlib.Path) -> tuple[str, Config]:
    """The job and the config that a run's config.json holds."""
    try:
        _checks.require(path.is_file(), "it is no file")
        _checks.require(path.stat().st_size <= LARGEST_FILE, "it is larger than any config")
        stored = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_fields.once)
        whole = isinstance(stored, dict) and stored.keys() == {"job", "config"}
        _checks.require(whole, "expected a job and its config, as a run stores them")
        _checks.require_name("job", stored["job"], JOBS)
        return stored["job"], _fields.decode(Config, stored["config"], "")
    except (ValueError, RecursionError, OSError) as error:
        raise RequestError(f"{path}: {error}") from error
