"""CIFAR-100: wrn40_2's representation for mobilenetv2, with the recipe of RepDistiller's tables.

Purpose: a comparison that others have published numbers for.
Command: tfds build cifar100 --file_format array_record  (once; needs TensorFlow)
         pcjax distill configs/cifar100_wrn40_2_mobilenetv2.py
Expected: not measured here; published with labels: teacher 75.61, student alone 64.60 %.
Cost: 240 epochs of 45,000 images for each of the two models; a GPU, some hours.
"""

from pcjax.config import Config, Data, Model, Teacher, Training, recipe

config = Config(
    data=Data(source="tfds:cifar100", crop=4, flip=True),
    teacher=Teacher(
        model=Model("wrn40_2"),
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
    student=Model("mobilenetv2"),
    losses=recipe("perception_coherence_frames"),
    training=Training(
        epochs=240,
        batch=256,
        optimiser="sgd",
        learning_rate=0.04,
        momentum=0.9,
        weight_decay=5e-4,
        clip=5.0,
        log_every=100,
        save_every=1750,
    ),
)
