"""Where examples come from, and the batches made of them."""

from pcjax.data.augment import Augmentation, horizontal_flip, random_crop, view_of
from pcjax.data.batches import (
    Sampling,
    TrainingBatches,
    evaluation_batches,
    training_batches,
)
from pcjax.data.corrupt import CORRUPTIONS, SEVERITIES, corrupted, corrupted_examples
from pcjax.data.examples import Dataset, Examples
from pcjax.data.fitted import fitted, sized
from pcjax.data.normalise import statistics
from pcjax.data.sources import SOURCES, load

__all__ = [
    "CORRUPTIONS",
    "SEVERITIES",
    "SOURCES",
    "Augmentation",
    "Dataset",
    "Examples",
    "Sampling",
    "TrainingBatches",
    "corrupted",
    "corrupted_examples",
    "evaluation_batches",
    "fitted",
    "horizontal_flip",
    "load",
    "random_crop",
    "sized",
    "statistics",
    "training_batches",
    "view_of",
]
