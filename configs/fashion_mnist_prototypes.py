"""Fashion-MNIST: a CNN's prototypes for a small CNN, by Proto2Proto with cross-entropy.

Purpose: a student that looks in an image for the same parts as its teacher.
Command: tfds build fashion_mnist --file_format array_record  (once; needs TensorFlow)
         pcjax distill configs/fashion_mnist_prototypes.py --data.part 0.2
Expected: k-NN accuracy 76.8 % (teacher 77.8 %, untrained student 49.9 %), coherence 0.890. The same
          student by cross-entropy alone: 68.3 % and 0.775; by Proto2Proto alone: 75.5 % and 0.891.
Cost: two CPU cores, two minutes for both; five times as long with all of the data, not tried.
"""

from pcjax.config import Config, Data, Model, Teacher, Training, recipe

training = Training(epochs=3, batch=128, learning_rate=1e-2, log_every=50, save_every=200)
config = Config(
    data=Data(source="tfds:fashion_mnist", crop=2),
    teacher=Teacher(
        model=Model("protopnet", {"widths": (32, 64, 128)}),
        live=True,  # no maps are stored
        training=training,
    ),
    # The loss needs as many prototypes, and patches as wide, as the teacher's.
    student=Model("protopnet", {"widths": (8, 16, 32)}),
    losses=recipe("proto2proto"),
    training=training,
)
