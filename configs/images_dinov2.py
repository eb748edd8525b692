"""Images: DINOv2's order of similarity for MobileNetV2, by perception coherence, without labels.

Purpose: a search by images on a phone that returns what the teacher's would.
Command: pip install -e ".[onnx]"
         pcjax distill configs/images_dinov2.py --data.source images:YOUR_PICTURES \
             --teacher.source dinov2:FOLDER
Expected: not measured on real pictures; tests/jobs/test_image_runs.py runs a small one.
Cost: on two CPU cores 0.2 s for each picture and view of the teacher, once; training needs a GPU.
"""

from pcjax.config import Config, Data, Model, Teacher, Training, recipe

config = Config(
    data=Data(source="images:pictures", image_size=224, crop=16, flip=True),
    # Four views of every picture: both see the same pixels, and the teacher computes each once.
    teacher=Teacher(source="dinov2:dinov2-small", views=4),
    student=Model("mobilenetv2_imagenet", {"features": 256}),
    losses=recipe("perception_coherence"),
    training=Training(epochs=40, batch=256, learning_rate=2e-3, save_every=500),
    # initial="torchvision:mobilenet_v2@mobilenet_v2.safetensors" begins with ImageNet's weights.
)
