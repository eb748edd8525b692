"""CIFAR-100: resnet56's representation for resnet20, the pair and recipe of RepDistiller's table.

Purpose: a comparison that others have published numbers for.
Command: tfds build cifar100 --file_format array_record  (once; needs TensorFlow)
         pcjax distill configs/cifar100_resnet56_resnet20.py
Expected: not measured here; published with labels: teacher 72.34, student alone 69.06 %.
Cost: 240 epochs of 45,000 images for each of the two models; a GPU, some hours.
"""

from pcjax.config import Config, Data, Model, Teacher, Training, recipe

config = Config(
    data=Data(source="tfds:cifar100", crop=4, flip=True),
    teacher=Teacher(
        model=Model("resnet56"),
        live=True,
        training=Training(
            epochs=240,
            batch=64,
            optimiser="sgd",
            learning_rate=0.05,
            schedule="steps",
            warmup=0.0,
            weight_decay=5e-4,
            log_every=100,
            save_every=7000,
        ),
    ),
    student=Model("resnet20"),
    losses=recipe("perception_coherence_frames"),
    training=Training(
        epochs=240,
        batch=256,
        optimiser="sgd",
        learning_rate=0.2,
        momentum=0.9,
        weight_decay=5e-4,
        clip=5.0,
        log_every=100,
        save_every=1750,
    ),
)
