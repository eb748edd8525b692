"""ImageNet shapes on a TPU pod: a ResNet-50's representation for a ResNet-18.

Purpose: a large batch, in which rankings are sharp, over many devices and processes.
Command: on every worker, with ImageNet prepared by TFDS in a mounted bucket:
         pcjax teach configs/imagenet_pod.py --data.data-dir MOUNTED/tfds --workdir MOUNTED/teacher
         pcjax distill configs/imagenet_pod.py --data.data-dir MOUNTED/tfds
             --teacher.run MOUNTED/teacher --workdir MOUNTED/student
         Try it on a CPU first: --data.source digits --data.image-size None --data.crop 0
             --teacher.model.name mlp --student.name mlp --training.batch 64 --training.steps 5
             --teacher.training.batch 64 --teacher.training.steps 5
Expected: not measured, no such machine was at hand.
Cost: a v4-32 or larger, a day.
"""

from pcjax.config import Config, Data, Evaluation, Loss, Model, Ramp, Teacher, Training

config = Config(
    data=Data(source="tfds:imagenet2012", image_size=224, crop=16, flip=True, validation=0.01),
    teacher=Teacher(
        model=Model("resnet50"),
        live=True,
        training=Training(
            epochs=90,
            batch=2048,
            optimiser="sgd",
            learning_rate=0.8,
            compute="bfloat16",
            parallel="shard_map",
            save_every=2000,
        ),
    ),
    student=Model("resnet18"),
    losses=(
        Loss(
            "perception_coherence",
            arguments={
                "temperature": Ramp(0.3, 0.05, until=0.8, shape="geometric"),
                "chunk_size": 256,
            },
        ),
    ),
    training=Training(
        epochs=100,
        batch=4096,
        learning_rate=4e-3,
        compute="bfloat16",
        parallel="shard_map",
        clip=1.0,
        save_every=1000,
    ),
    evaluation=Evaluation(neighbours=20, batch=2048),
)
