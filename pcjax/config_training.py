"""How a model is trained, in a config."""

import dataclasses
from typing import Literal

from pcjax import _checks, _fields
from pcjax._checks import RequestError
from pcjax.config_losses import MAX_INT32

MAX_WATCHDOG_SECONDS = 366 * 24 * 3600.0

# Fields of a training that do not change its result.
RUNTIME_FIELDS = ("devices", "keep", "watchdog_seconds", "tensorboard")


@dataclasses.dataclass(frozen=True)
class Training:
    """How a model is trained."""

    epochs: int = 30
    """number of passes over the training examples"""
    steps: int | None = None
    """number of steps, in place of epochs"""
    batch: int = 256
    """examples a step, over all devices"""
    optimiser: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    """its highest value"""
    schedule: Literal["cosine", "constant", "steps"] = "cosine"
    """steps: a tenth after 5/8, 3/4 and 7/8 of the training"""
    warmup: float = 0.05
    """share of the steps in which the learning rate rises from 0"""
    weight_decay: float = 1e-4
    momentum: float = 0.9
    """momentum of sgd"""
    clip: float | None = None
    """largest norm of the gradient; longer ones are shortened to it"""
    seed: int = 0
    """seed of the initial weights, the order of the data and the augmentation"""
    parallel: Literal["pmap", "shard_map"] = "pmap"
    """how the train step is mapped over devices; both give the same result"""
    devices: int | None = None
    """number of devices over all processes; None: all"""
    compute: Literal["float32", "bfloat16"] = "float32"
    """precision of the models; parameters, features and losses stay float32"""
    log_every: int = 50
    """steps between two lines of metrics"""
    save_every: int = 500
    """steps between two checkpoints, each scored on the validation examples"""
    patience: int | None = None
    """end the training after so many checkpoints without a better score; None: never"""
    keep: int = 2
    """number of latest checkpoints to keep besides the best one"""
    choose: Literal["best", "last"] = "best"
    """checkpoint that the trained model is taken from"""
    bad_steps: int = 20
    """number of consecutive skipped steps (not finite) that stops the training"""
    watchdog_seconds: float | None = None
    """end the command when a step takes longer; None: 1800 with several devices, else no limit"""
    tensorboard: bool = False
    """also write metrics for TensorBoard; needs `pip install "pcjax[tensorboard]"`"""

    def __post_init__(self):
        _fields.check_fields(self, "training")
        for name in ("epochs", "batch", "log_every", "save_every", "keep", "bad_steps"):
            _checks.require_whole(f"training.{name}", getattr(self, name), 1, MAX_INT32)
        for name in ("steps", "devices", "patience"):
            if getattr(self, name) is not None:
                _checks.require_whole(f"training.{name}", getattr(self, name), 1, MAX_INT32)
        _checks.require_whole("training.seed", self.seed, 0, MAX_INT32)
        if self.batch < 3:
            raise RequestError(
                f"training.batch={self.batch} is below 3; a single neighbour has no order."
            )
        _checks.require_positive("training.learning_rate", self.learning_rate)
        _checks.require_positive("training.clip", self.clip, optional=True)
        _checks.require_positive("training.watchdog_seconds", self.watchdog_seconds, optional=True)
        if (self.watchdog_seconds or 0) > MAX_WATCHDOG_SECONDS:
            raise RequestError(
                f"training.watchdog_seconds={self.watchdog_seconds} is longer than a year; "
                "leave it out for no limit."
            )
        if self.weight_decay < 0:
            raise RequestError(f"training.weight_decay={self.weight_decay} is negative.")
        for name in ("warmup", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise RequestError(f"training.{name}={getattr(self, name)} is not in [0, 1).")
