"""Where a teacher's outputs come from: a run, a training with labels, or a file of features."""

from pcjax.teachers.features import read_features
from pcjax.teachers.load import load_teacher, read_teacher, teacher_shapes
from pcjax.teachers.teacher import Teacher
from pcjax.teachers.trained import check_teaching, train_teacher

__all__ = [
    "Teacher",
    "check_teaching",
    "load_teacher",
    "read_features",
    "read_teacher",
    "teacher_shapes",
    "train_teacher",
]
