"""Fashion-MNIST: eight losses without labels, three seeds each, one small student of one teacher.

Purpose: compare what each loss transfers by itself, on two CPU cores in less than an hour.
Command: tfds build fashion_mnist --file_format array_record  (once; needs TensorFlow)
         pcjax compare configs/compare_fashion_mnist.py
Expected: docs/results.md has the table.
Cost: two CPU cores, 43 minutes beside other work.
"""

from pcjax.config import Comparison, Config, Contender, Data, Model, Teacher, Training, recipe

NAMES = [
    *("perception_coherence", "perception_coherence_list", "rank_list", "info_nce"),
    *("variational_information", "rkd_distance", "pkt", "hint"),
]

config = Config(
    data=Data(source="tfds:fashion_mnist"),
    teacher=Teacher(
        model=Model("cnn", {"features": 128, "widths": (32, 64, 128)}),
        training=Training(steps=500, batch=256, learning_rate=2e-3, log_every=50, save_every=250),
    ),
    student=Model("cnn", {"features": 32, "widths": (8, 16, 32)}),
    training=Training(steps=300, batch=256, learning_rate=3e-3, log_every=20, save_every=300),
    comparison=Comparison(
        contenders=tuple(Contender(name, recipe(name)) for name in NAMES), seeds=3
    ),
)
