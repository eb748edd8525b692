"""Fashion-MNIST: a CNN's representation for a small CNN, by perception coherence in two frames.

Purpose: real images at a size that a laptop trains in minutes.
Command: tfds build fashion_mnist --file_format array_record  (once; needs TensorFlow)
         pcjax distill configs/fashion_mnist.py
Expected: k-NN accuracy 83.6 % (teacher 87.2 %, untrained student 64.4 %).
Cost: two CPU cores, a quarter of an hour for both.
"""

from pcjax.config import Config, Data, Model, Teacher, Training, recipe

config = Config(
    data=Data(source="tfds:fashion_mnist", crop=2),
    teacher=Teacher(
        model=Model("cnn", {"features": 128, "widths": (32, 64, 128)}),
        training=Training(epochs=5, batch=256, learning_rate=2e-3, log_every=50, save_every=200),
    ),
    student=Model("cnn", {"features": 32, "widths": (8, 16, 32)}),
    losses=recipe("perception_coherence_frames"),
    training=Training(epochs=5, batch=256, learning_rate=3e-3, log_every=50, save_every=200),
)
