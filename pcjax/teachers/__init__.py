"""Load or compute a teacher's outputs: of a run, a training with labels, others' models, a file."""

from pcjax.teachers.encoder import Encoder
from pcjax.teachers.features import read_features
from pcjax.teachers.initial import check_initial, initialised_by_teacher, student_vocabulary
from pcjax.teachers.load import (
    load_source,
    load_teacher,
    read_teacher,
    teacher_shapes,
)
from pcjax.teachers.sources import all_teachers, find_encoder, read_source
from pcjax.teachers.teacher import Teacher
from pcjax.teachers.trained import check_teaching, train_teacher

__all__ = [
    "Encoder",
    "Teacher",
    "all_teachers",
    "check_initial",
    "check_teaching",
    "find_encoder",
    "initialised_by_teacher",
    "load_source",
    "load_teacher",
    "read_features",
    "read_source",
    "read_teacher",
    "student_vocabulary",
    "teacher_shapes",
    "train_teacher",
]
