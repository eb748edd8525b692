"""All settings of a job: frozen dataclasses, checked when they are built.

A config file is Python code that sets `config = Config(...)`; reading it runs it. A run stores its
config as JSON, which is only parsed. `pcjax JOB CONFIG.py --section.field value` overrides fields.
"""

import dataclasses
import json
import os
import pathlib
import re
import runpy
import sys
from typing import Any, Literal

from pcjax import _checks, _fields, _io
from pcjax._checks import RequestError
from pcjax.config_losses import MAX_INT32, Loss, Ramp, recipe
from pcjax.config_training import RUNTIME_FIELDS, Training
from pcjax.data import CORRUPTIONS, SOURCES
from pcjax.data.sources import find_source
from pcjax.dissimilarity import DISSIMILARITIES
from pcjax.losses.registry import LOSSES
from pcjax.models import options_of

__all__ = [
    "MAX_INT32",
    "Comparison",
    "Config",
    "Contender",
    "Data",
    "Evaluation",
    "Loss",
    "Model",
    "Ramp",
    "Teacher",
    "Training",
    "check_losses",
    "read_config",
    "read_stored",
    "recipe",
]

JOBS = ("distill", "teach", "compare", "tune")
MAX_BATCH, MAX_SIDE, MAX_RUNS = 2**16, 2**14, 10_000
MAX_CONFIG_BYTES = 2**24
# Teacher sources that run code, each named by a config's .py file, which is code itself.
TRUSTED: set[str] = set()
INITIAL = re.compile(r"random|teacher(:\d{1,3}(,\d{1,3})*)?")


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the examples come from, and how training images are augmented."""

    source: str = "digits"
    """digits, tfds:NAME, arrays:PATH, images:PATH or text:PATH"""
    data_dir: str | None = None
    """folder of TFDS's prepared data sets; None: TFDS's default"""
    image_size: int | None = None
    """side to which images are resized; needed where they differ in size"""
    part: float = 1.0
    """share of all examples that is used; a small one is enough for a quick try"""
    validation: float = 0.1
    """share of the training examples held out for validation"""
    crop: int = 0
    """pixels of padding before a random crop back to the image's size"""
    flip: bool = False
    """mirror every other image at random"""
    unseen: int = 0
    """number of classes, the last ones, left out of training and evaluated separately"""
    text_column: str | None = None
    """column of the texts in .csv, .tsv, .jsonl and .parquet files; None: text"""
    label_column: str | None = None
    """column of the classes of texts, where there is one; None: label"""
    image_labels: Literal["folders"] | None = None
    """folders: the sub-folder of an image is its class; None: the labels of lists and shards"""
    tokenizer: str | None = None
    """tokenizer.json of a student that reads texts; None: the teacher's"""
    max_tokens: int = 64
    """number of tokens to which training texts are cut; evaluation reads longer ones"""

    def __post_init__(self):
        _fields.check_fields(self, "data")
        find_source(self.source)
        _checks.require_whole("data.max_tokens", self.max_tokens, 1, MAX_SIDE)
        for name in ("text_column", "label_column", "tokenizer"):
            if getattr(self, name) == "":
                raise RequestError(f"data.{name} is empty; give a name or leave it out.")
        _checks.require_whole("data.crop", self.crop, 0, MAX_SIDE)
        _checks.require_whole("data.unseen", self.unseen, 0, MAX_INT32)
        if self.unseen == 1:
            raise RequestError(
                "data.unseen must be 0 or at least 2; with one class every neighbour is correct."
            )
        if self.image_size is not None:
            _checks.require_whole("data.image_size", self.image_size, 1, MAX_SIDE)
        if not 0 < self.part <= 1:
            raise RequestError(f"data.part={self.part} is not a share above 0 and at most 1.")
        if not 0 < self.validation < 1:
            raise RequestError(f"data.validation={self.validation} is not between 0 and 1.")


@dataclasses.dataclass(frozen=True)
class Model:
    """An architecture of pcjax.models with its options."""

    name: str = "mlp"
    """see `pcjax list models`"""
    options: dict[str, bool | int | float | str | tuple[int, ...]] = dataclasses.field(
        default_factory=dict
    )
    """the architecture's own arguments, such as features or widths"""

    def __post_init__(self):
        _fields.check_fields(self)
        known = options_of(self.name)
        for option, value in dict(self.options).items():
            if not known:
                raise RequestError(f"The model {self.name!r} has no options; remove {option!r}.")
            _checks.require_name(f"option of {self.name}", option, known)
            numbers: tuple[Any, ...] = value if isinstance(value, tuple) else (value,)
            if isinstance(known[option].default, tuple):  # one width is a tuple too
                self.options[option] = numbers
            default = known[option].default
            whole = isinstance(default, tuple) or type(default) is int
            if whole and not all(type(x) is int for x in numbers):
                raise RequestError(
                    f"{option}={value!r} of the model {self.name!r} is not a whole number."
                )
            if any(isinstance(x, (int, float)) and abs(x) > 2**20 for x in numbers):
                raise RequestError(f"{option}={value} of the model {self.name!r} exceeds 2^20.")


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The model whose representation is transferred, and where it comes from."""

    model: Model = dataclasses.field(
        default_factory=lambda: Model("mlp", {"features": 64, "widths": (512, 512)})
    )
    run: str | None = None
    """folder of a `pcjax teach` or `pcjax distill` run; None: a teacher is trained first, with
    labels, inside the run's own folder"""
    features: str | None = None
    """file with the teacher's features in place of a model: a .npy with one row an example, in the
    order of the source, or the features.npz that `pcjax embed` writes"""
    source: str | None = None
    """a model of others in place of one of pcjax; see `pcjax list teachers`"""
    side: int | None = None
    """height and width of the images that a model of others reads; None: its own"""
    live: bool = False
    """True: the teacher sees every augmented image; False: it sees the plain images, once"""
    views: int = 0
    """number of fixed views (data.crop, data.flip) of each example that teacher and student both
    see, in turn by epoch; the teacher's features of each are computed once. 0: it sees the plain
    images, or with teacher.live all"""
    training: Training = dataclasses.field(default_factory=lambda: Training(save_every=50))

    def __post_init__(self):
        _fields.check_fields(self, "teacher")
        given = [name for name in ("run", "features", "source") if getattr(self, name) is not None]
        for name in given:
            if getattr(self, name) == "":
                raise RequestError(f"teacher.{name} is empty; give a path or leave it out.")
        if len(given) > 1:
            raise RequestError(
                f"teacher.{given[0]} and teacher.{given[1]} exclude each other; remove one."
            )
        if self.side is not None:
            _checks.require_whole("teacher.side", self.side, 1, MAX_SIDE)
            if self.source is None:
                raise RequestError(f"teacher.side={self.side} needs teacher.source; remove it.")
        _checks.require_whole("teacher.views", self.views, 0, MAX_INT32)
        if self.views and (self.live or self.features is not None):
            other = "teacher.live" if self.live else "teacher.features"
            raise RequestError(f"teacher.views and {other} exclude each other; remove one.")
        if self.live and given not in ([], ["run"], ["source"]):
            raise RequestError(f"teacher.live needs a model; remove it or teacher.{given[0]}.")

    @property
    def is_trained_here(self) -> bool:
        """Return whether the teacher is trained inside the run of its student."""
        return self.run is None and self.features is None and self.source is None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a representation is evaluated."""

    dissimilarity: str = "cosine"
    """dissimilarity of coherence and retrieval; k-NN uses the cosine"""
    neighbours: int = 10
    """number of neighbours that vote in k-NN and that coherence compares"""
    batch: int = 512
    """examples computed at a time"""
    other: str | None = None
    """another data set, written as data.source, to evaluate the models on"""
    other_dir: str | None = None
    """folder where TFDS keeps that data set; None: data.data_dir"""
    pairs: str | None = None
    """file of pairs of texts with the columns sentence1, sentence2 and score: how well similarity
    agrees with these scores"""
    beside: tuple[str, ...] = ()
    """other models to evaluate beside the student, each written as teacher.source"""
    corruptions: tuple[str, ...] = ()
    """corruptions of the test images to evaluate: names, or all"""

    def __post_init__(self):
        _fields.check_fields(self, "evaluation")
        _checks.require_name("evaluation.dissimilarity", self.dissimilarity, DISSIMILARITIES)
        _checks.require_whole("evaluation.neighbours", self.neighbours, 1, MAX_INT32)
        _checks.require_whole("evaluation.batch", self.batch, 1, MAX_BATCH)
        if self.other_dir is not None and self.other is None:
            raise RequestError(
                f"evaluation.other_dir={self.other_dir!r} needs evaluation.other; give both."
            )
        for name in self.corruptions:
            _checks.require_name("corruption", name, (*CORRUPTIONS, "all"))


def check_losses(losses: tuple[Loss, ...], teacher: Teacher) -> None:
    """Refuse losses that cannot be combined, or that need more than the teacher gives."""
    if not losses:
        raise RequestError("losses is empty; give at least one.")
    scores = [loss.name for loss in losses if loss.kind == "logits" or LOSSES[loss.name].classifier]
    outside = "features" if teacher.features is not None else "source"
    if scores and (teacher.features is not None or teacher.source is not None):
        raise RequestError(
            f"The loss {scores[0]} needs class scores, which teacher.{outside} does not have."
        )
    for loss in losses:
        if loss.kind == "maps" and not teacher.live:
            raise RequestError(
                f"The loss {loss.name} compares maps, which only a live teacher gives: "
                "set teacher.live."
            )
    if not any(LOSSES[loss.name].alone for loss in losses):
        raise RequestError(
            f"The loss {losses[0].name} is 0 for a student that maps everything to one point: "
            "add a loss that separates examples, such as perception_coherence or kd."
        )


@dataclasses.dataclass(frozen=True)
class Contender:
    """A student of a comparison: a name and the losses it minimises."""

    name: str
    losses: tuple[Loss, ...]
    learning_rate: float | None = None
    """None: training.learning_rate"""

    def __post_init__(self):
        _fields.check_fields(self)
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise RequestError(
                f"learning_rate={self.learning_rate} of the contender {self.name} is not positive."
            )
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}", self.name) is None:
            raise RequestError(
                f"The contender name {self.name!r} cannot name a folder: use letters, digits and "
                "_ . + -"
            )
        if not self.losses:
            raise RequestError(f"The contender {self.name} has no losses; give at least one.")

    @property
    def needs_labels(self) -> bool:
        """Return whether its training uses the labels of the examples."""
        return any(loss.needs_labels for loss in self.losses)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The students that `pcjax compare` trains side by side."""

    contenders: tuple[Contender, ...] = ()
    """empty: the recipes that --losses names"""
    seeds: int = 3
    """number of initial weights that every contender is trained from"""
    trials: int = 8
    """number of settings of each contender that `pcjax tune` tries"""

    def __post_init__(self):
        _fields.check_fields(self, "comparison")
        _checks.require_whole("comparison.seeds", self.seeds, 1, MAX_RUNS)
        _checks.require_whole("comparison.trials", self.trials, 1, MAX_RUNS)
        names = [contender.name for contender in self.contenders]
        for name in names:
            if names.count(name) > 1:
                raise RequestError(f"Two contenders are named {name}; rename one.")


@dataclasses.dataclass(frozen=True)
class Config:
    """All sections. The default is the digits example, half a minute on two cores."""

    data: Data = dataclasses.field(default_factory=Data)
    teacher: Teacher = dataclasses.field(default_factory=Teacher)
    student: Model = dataclasses.field(
        default_factory=lambda: Model("mlp", {"features": 16, "widths": (64,)})
    )
    losses: tuple[Loss, ...] = dataclasses.field(
        default_factory=lambda: recipe("perception_coherence")
    )
    training: Training = dataclasses.field(
        default_factory=lambda: Training(epochs=100, save_every=100)
    )
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
    comparison: Comparison = dataclasses.field(default_factory=Comparison)
    initial: str = "teacher"
    """initial weights. Of a student that reads images: random, or a pretrained model of its
    architecture, written as teacher.source. Of one that reads texts: teacher, its vectors or evenly
    spaced layers;
    teacher:0,5, these layers; or random"""
    other_versions: bool = False
    """resume from checkpoints of other versions of pcjax or its libraries; the last digits of
    the results may then differ"""

    def __post_init__(self):
        _fields.check_fields(self)
        check_losses(self.losses, self.teacher)
        teacher, changed = self.teacher, self.data.crop or self.data.flip
        if teacher.source and changed and not (teacher.views or teacher.live):
            raise RequestError(
                "data.crop and data.flip change the images, and the features of teacher.source "
                "would be of the plain ones: give teacher.views 4 or teacher.live, or remove them."
            )
        if self.teacher.views and not (self.data.crop or self.data.flip):
            raise RequestError(
                f"teacher.views={self.teacher.views} needs data.crop or data.flip, without which "
                "all views are equal; give one, or remove it."
            )
        if not INITIAL.fullmatch(self.initial) and not self.is_pretrained:
            raise RequestError(
                f"initial={self.initial!r} is none of random, teacher, teacher:0,5 (layers) and "
                "KIND:NAME (a pretrained model of images)."
            )

    @property
    def is_pretrained(self) -> bool:
        """Return whether the student begins with the weights of a pretrained model."""
        return ":" in self.initial and not INITIAL.fullmatch(self.initial)

    def to_json(self) -> str:
        """Write the config as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Build a config from JSON; refuse unknown fields and wrong types by name."""
        try:
            return _fields.decode(cls, json.loads(text))
        except json.JSONDecodeError as error:
            raise RequestError(f"The config is not JSON: {error}.") from error

    def resume_identity(self) -> "Config":
        """Return the config without the fields that may change when a run is resumed."""
        defaults = {
            name: field.default
            for name, field in Training.__dataclass_fields__.items()
            if name in RUNTIME_FIELDS
        }
        teacher = dataclasses.replace(
            self.teacher, training=dataclasses.replace(self.teacher.training, **defaults)
        )
        training = dataclasses.replace(self.training, **defaults)
        return dataclasses.replace(
            self,
            teacher=teacher,
            training=training,
            evaluation=dataclasses.replace(self.evaluation, beside=()),
            comparison=Comparison(),
            other_versions=False,
        )

    def digest(self) -> str:
        """Hash the fields that decide the result, without those that have their defaults."""
        return _io.digest(_fields.non_default_fields(self.resume_identity()))

    def with_absolute_paths(self) -> "Config":
        """Return the config with absolute paths, so that it can be read from any folder."""
        replace, evaluation = dataclasses.replace, self.evaluation
        return replace(
            self,
            data=replace(
                self.data,
                source=_absolute_source(self.data.source),
                data_dir=_absolute(self.data.data_dir),
                tokenizer=_absolute(self.data.tokenizer),
            ),
            teacher=replace(
                self.teacher,
                run=_absolute(self.teacher.run),
                features=_absolute(self.teacher.features),
                source=self.teacher.source and _absolute_teacher(self.teacher.source),
            ),
            initial=_absolute_teacher(self.initial),
            evaluation=replace(
                evaluation,
                other=evaluation.other and _absolute_source(evaluation.other),
                other_dir=_absolute(evaluation.other_dir),
                pairs=_absolute(evaluation.pairs),
                beside=tuple(map(_absolute_teacher, evaluation.beside)),
            ),
        )


def _absolute(path: str | None) -> Any:
    if path is None or "://" in path:
        return path
    # os.path does not look at the disk, so that a path that does not exist is refused later.
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111


def _absolute_source(source: str) -> str:
    kind, colon, path = source.partition(":")
    names_path = kind in SOURCES and SOURCES[kind].is_path
    return f"{kind}:{_absolute(path)}" if names_path and colon and path else source


def _absolute_teacher(source: str) -> str:
    """Make a path absolute that exists; another name may be a model's on a hub."""
    kind, colon, name = source.partition(":")
    architecture, at, file = "", "", name
    if not os.path.exists(name):  # noqa: PTH110
        architecture, at, file = name.rpartition("@")  # ARCH@FILE
    path, sharp, output = file.partition("#")  # FILE#OUTPUT
    if not colon or not os.path.exists(path):  # noqa: PTH110
        return source
    return f"{kind}:{architecture}{at}{_absolute(path)}{sharp}{output}"


def read_config(path: str | pathlib.Path) -> Config:
    """Read a config from a .py file, which is run, or from a run's config.json."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise RequestError(
            f"There is no config {path}: give a .py file that sets `config`, or a run's "
            "config.json."
        )
    if path.suffix == ".json":
        return read_stored(path)[1]
    if path.suffix != ".py":  # runpy would also run archives and compiled files
        raise RequestError(f"{path} is not a config: give a .py file or a run's config.json.")
    try:
        config = runpy.run_path(str(path)).get("config")
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:
        raise RequestError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise RequestError(f"{path} does not set config = pcjax.config.Config(...).")
    named = [config.teacher.source, *config.evaluation.beside]
    functions = {source for source in named if source and source.startswith("python:")}
    if functions:
        TRUSTED.update(functions)
        sys.path.insert(0, str(path.resolve().parent))  # where the functions may be
    return config


def read_stored(path: pathlib.Path) -> tuple[str, Config]:
    """Read the job and the config that a run's config.json holds."""
    try:
        stored = _io.read_json(path, MAX_CONFIG_BYTES)
        if not isinstance(stored, dict) or stored.keys() != {"job", "config"}:
            raise RequestError("it does not hold a job and its config")
        _checks.require_name("job", stored["job"], JOBS)
        return stored["job"], _fields.decode(Config, stored["config"])
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from error
