"""The small run that all tests of commands share, so that they share what is compiled."""

STEPS = 60
SMALL = [
    *("--teacher.model.widths", "24", "--teacher.model.features", "12"),
    *("--teacher.training.steps", "4", "--teacher.training.batch", "64"),
    *("--student.widths", "8", "--student.features", "4"),
    *("--training.steps", str(STEPS), "--training.batch", "64"),
    *("--training.save-every", "3", "--training.log-every", "2"),
    *("--data.part", "0.4", "--data.validation", "0.2"),
]
QUICK = [*SMALL, "--training.steps", "8", "--training.save-every", "4", "--training.devices", "1"]
QUICK += ["--teacher.training.devices", "1"]
