"""Where examples come from, and the batches made of them."""

from pcjax.data.augment import horizontal_flip, random_crop
from pcjax.data.batches import TrainingBatches, evaluation_batches, training_batches
from pcjax.data.examples import Dataset, Examples
from pcjax.data.normalise import statistics
from pcjax.data.sources import load

__all__ = [
    "Dataset",
    "Examples",
    "TrainingBatches",
    "evaluation_batches",
    "horizontal_flip",
    "load",
    "random_crop",
    "statistics",
    "training_batches",
]
