"""The study on images: losses without labels for a small CNN of one teacher, on Fashion-MNIST.

Purpose: find out which loss keeps what of an image encoder.
Command: tfds build fashion_mnist --file_format array_record  (once; needs TensorFlow)
         pcjax compare configs/study/fashion_mnist.py
Expected: docs/study.md has the table.
Cost: two CPU cores, 40 seconds for each loss and seed.
"""

from pcjax.config import Comparison, Config, Contender, Data, Model, Teacher, Training, recipe

LOSSES = {
    "perception_coherence": recipe("perception_coherence"),
    "perception_coherence_list": recipe("perception_coherence_list"),
    "perception_coherence_frames": recipe("perception_coherence_frames"),
    "rank_list": recipe("rank_list"),
    "info_nce": recipe("info_nce"),
    "rkd_distance": recipe("rkd_distance"),
    "pkt": recipe("pkt"),
    "hint": recipe("hint"),
}

config = Config(
    data=Data(source="tfds:fashion_mnist"),
    teacher=Teacher(
        model=Model("cnn", {"features": 128, "widths": (32, 64, 128)}),
        training=Training(steps=500, batch=256, learning_rate=2e-3, log_every=50, save_every=250),
    ),
    student=Model("cnn", {"features": 32, "widths": (8, 16, 32)}),
    training=Training(steps=300, batch=256, learning_rate=3e-3, log_every=20, save_every=300),
    comparison=Comparison(
        contenders=tuple(Contender(name, losses) for name, losses in LOSSES.items()), seeds=3
    ),
)
