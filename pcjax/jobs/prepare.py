"""What every training job begins with: the data, its batches, a model with its first weights, and the plan."""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pcjax import _checks, data, models
from pcjax._checks import RequestError
from pcjax._fields import told
from pcjax.config import MOST, Config, Loss, Model, Ramp, Training
from pcjax.data import Dataset, Examples
from pcjax.evaluation.evaluate import LEAST, check_judging, versions
from pcjax.evaluation.extras import load_other
from pcjax.loss_registry import CLASSIFIER, TERMS, needs_labels
from pcjax.models import Output
from pcjax.models.functional import functional, functional_shapes
from pcjax.run import CHECKPOINTS
from pcjax.training import parallel
from pcjax.training.arrays import named
from pcjax.training.checkpoint import Checkpoints
from pcjax.training.clock import Clock
from pcjax.training.display import Display
from pcjax.training.embedding import Frozen, host
from pcjax.training.guard import BadStepsError
from pcjax.training.loop import Plan, train
from pcjax.training.metrics_log import METRICS
from pcjax.training.neighbour_views import Beside, nearest
from pcjax.training.objective import Moment, Objective, objective, with_memories
from pcjax.training.state import State, make_optimiser, start
from pcjax.training.step import AXIS, Batch, Fixed, make_step, metric_names
from pcjax.training.stopping import Watchdog

STUDENT_SEED, TEACHER_SEED = 0, 1  # streams of random numbers for first weights
# What a model is worth on the validation examples; it calls what it is given between its batches.
Judge = Callable[[Frozen, Callable[[], None]], Mapping[str, float]]


class Loaded(NamedTuple):
    """The examples, and how their channels are normalised."""

    examples: Dataset
    normalise: tuple[np.ndarray, np.ndarray]
    other: Dataset | None = None  # the data set that evaluation.other names, in the shape of these


def load(config: Config) -> Loaded:
    """The data a config asks for, refused where it cannot be judged as asked."""
    asked = config.data
    examples = data.load(
        asked.source,
        data_dir=asked.data_dir,
        validation=asked.validation,
        image_size=asked.image_size,
        unseen=asked.unseen,
        part=asked.part,
    )
    return Loaded(examples, data.statistics(examples.train), load_other(config, examples))


def counts(loaded: Loaded) -> str:
    """How many examples there are, and what follows where some of them have no class."""
    parts = loaded.examples.parts
    found = ", ".join(f"{len(examples):,} {part}" for part, examples in parts.items())
    labels = [examples.labels for examples in parts.values() if examples.labels is not None]
    unknown = sum(int(np.sum(some < 0)) for some in labels)
    left_out = f" ({unknown:,} without a class, so k-NN and linear probe are left out)"
    return found + left_out if unknown and any(np.any(some >= 0) for some in labels) else found


def new_model(
    model: Model,
    loaded: Loaded,
    training: Training,
    stream: int,
    make: Callable[..., Any] = functional,
) -> Frozen:
    """A model with its first weights, which depend on the seed alone."""
    examples = loaded.examples.train
    classes = classes_of(examples)
    seed = 2 * training.seed + stream

    def build() -> nnx.Module:
        return models.build(
            model.name,
            shape=examples.shape,
            classes=classes,
            rngs=nnx.Rngs(seed),
            dtype=jnp.dtype(training.compute),
            axis_name=AXIS,
            **model.options(),
        )

    return Frozen(*make(build))


def classes_of(examples: Examples) -> int | None:
    """How many classes a model of these examples tells apart; None where nothing is known of them."""
    if examples.classes is not None:
        return len(examples.classes)
    labels = examples.labels
    return None if labels is None or labels.max() < 0 else int(labels.max()) + 1


def promised(model: Model, loaded: Loaded, training: Training) -> tuple[Output, dict[str, Any]]:
    """The shapes of what such a model says of one example, and of its last layer; nothing is computed."""
    shapes = new_model(model, loaded, training, STUDENT_SEED, functional_shapes)
    return output_shapes(shapes, loaded), classifier_of(shapes)


def output_shapes(model: Frozen, loaded: Loaded) -> Output:
    """The shapes of what a model says of one example."""

    def output(parameters: Any, statistics: Any, images: Any) -> Output:
        return model.function.apply(parameters, statistics, images, train=False)[0]

    one = jax.ShapeDtypeStruct((1, *loaded.examples.train.shape), jnp.float32)
    return jax.eval_shape(output, model.parameters, model.statistics, one)


def rehearse(
    losses: tuple[Loss, ...],
    student: Output,
    teacher: Output | None,
    classifier: Mapping[str, Any],
    training: Training,
    loaded: Loaded,
) -> None:
    """Computes the losses' shapes, so that what they refuse is refused before anything is trained."""
    for loss in losses:
        got = f"the loss {loss.name} reads with the teacher's last layer, classify/kernel among its parameters"
        there = not TERMS[loss.name].classifier or "kernel" in classifier
        _checks.require(
            there, f"{got}, and this teacher has none: leave the loss out, or take another teacher"
        )
    examples = loaded.examples.train
    what, kept = objective(losses, student, teacher, training.seed)
    kept = with_memories(kept, what, student, teacher, len(examples), examples.labels)

    def rows(one: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((training.batch, *x.shape[1:]), x.dtype), one
        )

    whole = jax.ShapeDtypeStruct((training.batch,), jnp.int32)
    batch = {
        "mask": jax.ShapeDtypeStruct((training.batch,), jnp.bool_),
        "label": whole,
        "index": whole,
    }
    step, progress = (jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.int32, jnp.float32))
    seen = None if teacher is None else rows(teacher)

    def total(what: Objective) -> Callable[..., Any]:
        def of(
            student: Any,
            teacher: Any,
            classifier: Any,
            batch: Any,
            step: Any,
            progress: Any,
            kept: Any,
        ) -> Any:
            beside = (
                Beside(student, teacher, student, jnp.ones(training.batch))
                if what.neighbours
                else None
            )
            return what(
                Moment(student, teacher, classifier, batch, step, progress, None, beside), kept
            )

        return of

    # What moves has no value while it is traced: where it starts and where it ends are looked at in its place.
    still = (
        []
        if _still(losses, "start") == losses
        else [_still(losses, end) for end in ("start", "end")]
    )
    try:
        for at in (*still, losses):
            asked = what._replace(losses=at)
            jax.eval_shape(
                total(asked), rows(student), seen, classifier, batch, step, progress, kept
            )
    except (TypeError, ValueError) as error:
        names = ", ".join(what.names())
        raise RequestError(
            f"the losses ({names}) cannot be computed as asked: {str(error).splitlines()[0]}"
        ) from error


def _still(losses: tuple[Loss, ...], end: str) -> tuple[Loss, ...]:
    """The losses with every ramp among their arguments at one of its ends."""

    def of(loss: Loss) -> Loss:
        ends = {
            name: getattr(value, end)
            for name, value in loss.arguments.items()
            if isinstance(value, Ramp)
        }
        return dataclasses.replace(loss, arguments=loss.arguments | ends) if ends else loss

    return tuple(map(of, losses))


def check(
    config: Config,
    training: Training,
    losses: tuple[Loss, ...],
    loaded: Loaded,
    section: str = "training",
) -> None:
    """What can be refused before anything is computed; the section is the part of the config that the training is."""
    for split, examples in (
        ("validation", loaded.examples.validation),
        ("test", loaded.examples.test),
    ):
        few = f"got {len(examples)} {split} examples from {config.data.source}"
        _checks.require(
            len(examples) >= LEAST, f"{few}: expected at least {LEAST}, give more or hold out more"
        )
    check_judging(config.evaluation, loaded.examples, loaded.other)
    shape = loaded.examples.train.shape
    got = f"got data.crop {config.data.crop} and data.flip {config.data.flip} for examples of shape {shape}"
    _checks.require(
        len(shape) == 3 or not (config.data.crop or config.data.flip),
        f"{got}: only images have them",
    )
    fits = len(shape) != 3 or config.data.crop <= min(shape[:2])
    _checks.require(
        fits,
        f"got data.crop {config.data.crop} for images of shape {shape}: expected at most their side",
    )
    board = not training.tensorboard or importlib.util.find_spec("tensorboardX") is not None
    remedy = '`pip install "pcjax[tensorboard]"`, or leave it out'
    _checks.require(board, f"got {section}.tensorboard, which needs tensorboardX: {remedy}")
    steps_of(training, len(loaded.examples.train), section)
    parallel.choose_devices(training.devices, training.batch, section)
    for loss in losses:
        if needs_labels(TERMS[loss.name], loss.arguments) and loaded.examples.train.labels is None:
            raise RequestError(
                f"the loss {loss.name} needs labels, and {config.data.source} has none: leave it out"
            )


def steps_of(training: Training, examples: int, section: str = "training") -> int:
    """How many steps the training takes; the section is the part of the config that it is."""
    got = f"got {section}.batch {training.batch} for {examples} training examples"
    _checks.require(training.batch <= examples, f"{got}: expected at most as many")
    steps = training.steps or training.epochs * (examples // training.batch)
    _checks.require(
        steps <= MOST,
        f"got {section}.epochs {training.epochs}, {steps} steps: expected at most {MOST}",
    )
    return steps


@dataclasses.dataclass(frozen=True)
class Guide:
    """The teacher as the student's training sees it: frozen arrays, a function of them, and columns of the batches.

    Its classifier, kernel and bias, is for the losses that read with it; its features of the plain training images are
    what neighbours are found by.
    """

    digest: str = ""
    frozen: Any = ()
    output: Callable[[Any, Batch], Output] | None = None
    shapes: Output | None = None
    classifier: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    features: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def plan(
    name: str,
    folder: pathlib.Path,
    config: Config,
    model: Model,
    training: Training,
    losses: tuple[Loss, ...],
    loaded: Loaded,
    first: Frozen,
    guide: Guide,
    judge: Judge,
    display: Display,
    clock: Clock,
) -> Plan:
    """Everything a training needs, from what was asked for."""
    train_examples = loaded.examples.train
    steps = steps_of(training, len(train_examples))
    devices = parallel.choose_devices(training.devices, training.batch)
    seen = output_shapes(first, loaded)
    what, kept = objective(losses, seen, guide.shapes, training.seed, AXIS)
    kept = with_memories(kept, what, seen, guide.shapes, len(train_examples), train_examples.labels)
    read = any(TERMS[loss.name].classifier for loss in losses)
    fixed = Fixed(guide.frozen, guide.classifier if read else {})
    optimiser = make_optimiser(training, steps)
    batches = data.training_batches(
        train_examples,
        batch=training.batch,
        seed=training.seed,
        crop=config.data.crop,
        flip=config.data.flip,
        normalise=loaded.normalise,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        columns=guide.columns,
        neighbours=nearest(guide.features)
        if what.neighbours and guide.features is not None
        else None,
    )
    state = start(first.parameters, first.statistics, kept, optimiser, metric_names(what))
    step = make_step(
        first.function, guide.output, what, optimiser, steps, batches.size, training.spike
    )
    mapped = parallel.Mapped(step, devices, training.parallel)
    manifest = {
        "role": name,
        "model": told(model),
        "data": loaded.examples.fingerprint,
        "batch": training.batch,
        "seed": training.seed,
        "steps": steps,
        "config": config.digest(),
        "teacher": guide.digest,
    }
    about = {
        "devices": len(devices),
        "device": devices[0].device_kind,
        "processes": jax.process_count(),
    }
    about |= {"versions": versions()}
    own = folder / CHECKPOINTS
    checkpoints = Checkpoints(
        own,
        manifest,
        keep=training.keep,
        say=display.say,
        about=about,
        other_versions=config.other_versions,
        clock=clock,
    )

    def judged(state: State, between: Callable[[], None]) -> Mapping[str, float]:
        return judge(
            first._replace(parameters=host(state.student), statistics=host(state.statistics)),
            between,
        )

    return Plan(
        name,
        folder,
        training,
        steps,
        mapped,
        mapped.place(fixed),
        state,
        batches,
        checkpoints,
        judged,
    )


def classifier_of(model: Frozen) -> dict[str, Any]:
    """The last layer of a model of ours that has one."""
    found = {name: model.parameters.get(f"classify/{name}") for name in CLASSIFIER}
    return {name: array for name, array in found.items() if array is not None}


def trained(chosen: Plan, first: Frozen, display: Display) -> Frozen:
    """The model after training to the end, from the checkpoint that its training chooses."""
    try:
        skipped = train(chosen, display)
        of = f"{chosen.name}: {skipped} of {chosen.steps} steps were not taken"
        if skipped > chosen.steps / 2:
            raise BadStepsError(
                f"{of}, not being finite, far beyond the others, or of examples that are all alike: lower the "
                f"learning rate, or look at the examples that {chosen.folder / METRICS} names"
            )
        if skipped:
            display.say(f"{of}; {chosen.folder / METRICS} says which")
        with Watchdog(f"{chosen.name}: reading the checkpoint that is chosen"):
            return weights(chosen.checkpoints, chosen.training, first)
    finally:
        chosen.batches.close()
        chosen.checkpoints.close()


def weights(checkpoints: Checkpoints, training: Training, like: Frozen) -> Frozen:
    """The model of the checkpoint that its training chooses."""
    found = checkpoints.chosen_arrays(training.choose)
    if found is None:
        raise RequestError(
            f"no checkpoints in {checkpoints.folder}: run the command that trains it to its end first"
        )
    step, arrays = found
    tree = {"student": like.parameters, "statistics": like.statistics}
    own = named(tree)
    there = {
        name: (str(x.dtype), x.shape)
        for name, x in arrays.items()
        if name.partition("/")[0] in tree
    }
    checkpoints.require_same(
        step, own, there, "it is of another model, and config.json was changed since"
    )
    parts = jax.tree.unflatten(
        jax.tree.structure(tree), [jnp.asarray(arrays[name]) for name in own]
    )
    return like._replace(parameters=parts["student"], statistics=parts["statistics"])
