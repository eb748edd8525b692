"""Small models of every architecture, for the laws of models and of exports."""

import contextlib

import pytest

from pcjax.models import mobilenetv2, shufflenetv2

CLASSES = 3
# name of the test: (model, shape, options, dimension of the features)
SMALL = {
    "mlp": ("mlp", (5,), {"widths": (7, 6), "features": 4}, 4),
    "mlp of images": ("mlp", (3, 2, 1), {"widths": [7], "features": 4}, 4),
    "cnn": ("cnn", (6, 5, 1), {"widths": (4, 6), "features": 5}, 5),
    "resnet8": ("resnet8", (8, 8, 3), {}, 64),
    "wrn16_1": ("wrn16_1", (8, 8, 3), {}, 64),
    "mobilenetv2": ("mobilenetv2", (16, 16, 3), {"width": 0.25}, 1280),
    "shufflenetv2": ("shufflenetv2", (8, 8, 1), {"width": 0.5}, 1024),
    "protopnet": (
        "protopnet",
        (8, 8, 1),
        {"widths": (4, 6), "prototypes": 7, "patch_features": 5, "features": 6},
        6,
    ),
    "protopnet of wrn16_1": (
        "protopnet",
        (8, 8, 3),
        {"backbone": "wrn16_1", "prototypes": 7, "patch_features": 5},
        7,
    ),
    "vit": ("vit_tiny", (8, 12, 3), {"layers": 1, "patch": 4, "intermediate": 5}, 192),
    "vit of DINOv2": (
        "vit_tiny",
        (8, 8, 1),
        {
            "layers": 1,
            "patch": 4,
            "intermediate": 5,
            "registers": 2,
            "layer_scale": True,
            "pooling": "cls+mean",
        },
        384,
    ),
}


@contextlib.contextmanager
def few_blocks():
    """Reduce deep models to one block of every kind, as depth takes long to compile."""
    # The stages left out differ by their widths and the names of their maps alone.
    kept = [stage for stage in mobilenetv2.STAGES if stage[1] in (16, 24, 320)]
    stages = [(t, c, 2 if c == 24 else 1, s) for t, c, _, s in kept]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mobilenetv2, "STAGES", stages)
        patched.setattr(shufflenetv2, "DEPTHS", (2, 1, 1))
        yield
