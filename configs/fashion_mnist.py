"""Fashion-MNIST: a CNN's representation for a small CNN, perception coherence in the teacher's frame.

Purpose: real images at a size that a laptop trains in minutes.
Command: tfds build fashion_mnist --file_format array_record  (once; needs `pip install tensorflow`)
         pcjax distill configs/fashion_mnist.py
Expected: the student's k-NN accuracy 83.6 %, the teacher's 87.2 %, the untrained student's 64.4 %; coherence with the
          teacher (Spearman) 0.97 from 0.17.
Cost: two CPU cores, a quarter of an hour for both.
"""

from pcjax.config import Config, Data, Loss, Model, Teacher, Training

config = Config(
    data=Data(source="tfds:fashion_mnist", crop=2),
    teacher=Teacher(
        model=Model("cnn", widths=(32, 64, 128), features=128),
        training=Training(epochs=5, batch=256, learning_rate=2e-3, log_every=50, save_every=200),
    ),
    student=Model("cnn", widths=(8, 16, 32), features=32),
    losses=(
        Loss("perception_coherence", arguments={"temperature": 0.1, "dissimilarity": "cosine"}),
        Loss(
            "perception_coherence",
            head="linear",
            arguments={
                "temperature": 0.1,
                "dissimilarity": "cosine",
                "frame": "teacher",
                "weighting": "neighbours",
            },
        ),
    ),
    training=Training(epochs=5, batch=256, learning_rate=3e-3, log_every=50, save_every=200),
)
