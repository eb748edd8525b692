"""Fashion-MNIST: ten losses without labels, three seeds each, one small student of one teacher.

Purpose: compare what each loss transfers at its best learning rate, on two CPU cores in an hour.
Command: tfds build fashion_mnist --file_format array_record  (once; needs TensorFlow)
         pcjax compare configs/compare_fashion_mnist.py
Expected: docs/results.md has the table.
Cost: two CPU cores, an hour beside other work.
"""

from pcjax.config import (
    Comparison,
    Config,
    Contender,
    Data,
    Loss,
    Model,
    Teacher,
    Training,
    recipe,
)

NAMES = (
    *("perception_coherence", "perception_coherence_list", "rank_list", "info_nce"),
    *("variational_information", "rkd_distance", "pkt", "hint"),
)


def with_rank_list(*weights):
    """Return sums of perception coherence and the rank list, by name."""
    return {
        f"with_rank_list_{weight}": (Loss("perception_coherence"), Loss("rank_list", weight=weight))
        for weight in weights
    }


LOSSES = {name: recipe(name) for name in NAMES} | with_rank_list(0.3, 1.0)
# The best learning rate by study/fashion_mnist_rates.py, where it is not 0.01.
RATES = dict.fromkeys(
    (
        *("rank_list", "info_nce", "variational_information", "rkd_distance", "hint"),
        *("with_rank_list_0.3", "with_rank_list_1.0"),
    ),
    3e-2,
)

config = Config(
    data=Data(source="tfds:fashion_mnist"),
    teacher=Teacher(
        model=Model("cnn", {"features": 128, "widths": (32, 64, 128)}),
        training=Training(steps=500, batch=256, learning_rate=2e-3, log_every=50, save_every=250),
    ),
    student=Model("cnn", {"features": 32, "widths": (8, 16, 32)}),
    training=Training(steps=300, batch=256, learning_rate=1e-2, log_every=20, save_every=300),
    comparison=Comparison(
        tuple(Contender(name, losses, RATES.get(name)) for name, losses in LOSSES.items()), seeds=3
    ),
)
