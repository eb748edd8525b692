"""`pcjax JOB ...`: read the command line, call the job, turn errors into a line and a status.

Exit status: 0 done; 2 the request was wrong; 128 + signal (143, 130, and 141 for output that nobody
reads) stopped; 1 anything else.
"""

import importlib
import os
import pathlib
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

HELP = """pcjax transfers the representation of a large teacher model to a lightweight student.

  pcjax distill [CONFIG]                   train a student, and its teacher if there is none
  pcjax teach   [CONFIG]                   train a teacher alone, with labels
  pcjax compare [CONFIG] --losses a,b,c    train students with several losses, side by side
  pcjax tune    [CONFIG] --losses a,b,c    choose each loss's settings on validation examples
  pcjax evaluate RUN                       evaluate a finished run again, or on other data
  pcjax embed RUN                          write its features, RUN/features.npz
  pcjax embed CONFIG.py                    compute the features of its teacher, for later commands
  pcjax export RUN [--format FORMAT]       write the student alone, for pcjax or for others
  pcjax report RUN                         draw RUN/report.html again
  pcjax list losses|models|sources|...     print the names that a config can use

CONFIG is a Python file that sets `config`, or a run's config.json; without one, the handwritten
digits. RUN is the folder of an earlier command. A stopped command resumes when it is repeated.
`pcjax JOB --help` prints the options.
"""
TRAINING_HELP = """pcjax {job} [CONFIG] [--workdir DIR] [--section.field value ...]

{purpose}

  --workdir DIR                    folder of the run; a stopped run there is resumed [{workdir}]
  --data.source SOURCE             digits, tfds:NAME, arrays:, images: or text:PATH
{options}
  --no-cache                       compile everything anew
  --help-all                       print every field of the config

Example: {example}
"""
STUDENT_OPTIONS = """\
  --losses NAME[,NAME ...]         {losses}{extra}
  --student.name NAME              architecture of the student; `pcjax list models`
  --student.features N             number of the student's features
  --teacher.run DIR                use the teacher of an earlier run
  --teacher.features FILE          use features computed elsewhere: .npy, one row an example
  --teacher.source NAME            use a model of others; `pcjax list teachers`
  --initial NAME                   begin with the teacher's weights, or a pretrained model's
  --training.epochs N              length of the student's training
  --training.batch N               examples a step
  --training.learning-rate X
  --training.seed N"""
TEACHER_OPTIONS = """\
  --teacher.model.name NAME        architecture of the teacher; `pcjax list models`
  --teacher.model.features N       number of its features
  --teacher.training.epochs N      length of its training
  --teacher.training.batch N       examples a step
  --teacher.training.learning-rate X
  --teacher.training.seed N"""
DRY_RUN_OPTIONS = """
  --dry-run                        print what each device needs, and train nothing; with
                                   --devices N [8] and --device v5e, h100 or 24GB [v4]"""
EVALUATE_HELP = """pcjax evaluate RUN [options]

Evaluate a finished run again, and on more data. The results join RUN/result.json.

  --other SOURCE          another data set, on which the models are evaluated by its labels
  --other-dir DIR         folder where TFDS keeps that data set
  --pairs FILE            pairs of texts with sentence1, sentence2 and score, for models of texts
  --corruptions [NAME..]  corrupt the test images: these ways, or all of them
  --beside NAME [NAME..]  other models to evaluate too; `pcjax list teachers`
  --throughput            measure how many examples a second each model takes here
  --config CONFIG.py      the config of a run whose teacher is python:MODULE.FUNCTION
"""
EXPORT_HELP = """pcjax export RUN [options]

Write the trained student of a run into the run's folder, for pcjax or for others.

  --format FORMAT         one of `pcjax list formats` [safetensors]
  --normalise             scale the features to length 1, in onnx, onnx-int8 and stablehlo
  --licence NAME          the student's licence, for its model card, such as apache-2.0
  --config CONFIG.py      the config of a run whose teacher is python:MODULE.FUNCTION
"""
JOBS = {
    "distill": "Train a student to order the world as its teacher does.",
    "teach": "Train the teacher alone, with labels.",
    "compare": "Train students with several losses, from the same weights and data.",
    "tune": "Choose each loss's settings on validation examples.",
}
ON_RUNS = ("evaluate", "embed", "export", "report")
WORKDIRS = {"distill": "", "teach": "-teacher", "compare": "-compared", "tune": "-tuning"}
MAX_LINE = 2000
SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPED = tuple(128 + number for number in SIGNALS)


def command() -> None:
    """Run the command line of this process and exit."""
    status = main(sys.argv[1:])
    multihost = sys.modules.get("pcjax.multihost")
    if status in STOPPED and not (multihost and multihost.is_distributed()):
        _exit_at_once(status)  # a save in the background would complain that it was cut off
    sys.exit(status)


def main(arguments: Sequence[str]) -> int:
    """Run a command; return its exit status."""
    words = [str(word) for word in arguments]
    if not words or words[0] == "help" or {"-h", "--help"} & set(words):
        return _print(_help(words))
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    resume = shlex.join(["pcjax", *words])
    try:
        signal.signal(signal.SIGTERM, _raise_exit)
        return _run(words, resume)
    except KeyboardInterrupt:
        return _stopped("SIGINT", resume)
    except SystemExit as exit_:
        if exit_.code == 128 + signal.SIGTERM:
            return _stopped("SIGTERM", resume)
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stopped(name: str, resume: str) -> int:
    """End after a signal outside a training; JAX then ends the other processes of the job."""
    status = 128 + signal.Signals[name]
    _fail(f"stopped by {name}; repeat the command to resume: {resume}", status)
    _end_all_processes(status)
    return status


def _raise_exit(number: int, _: Any) -> None:
    sys.exit(128 + number)


def _run(words: list[str], resume: str) -> int:
    """Run a job and turn its errors into exit statuses."""
    from pcjax._checks import FailedError, RequestError

    try:
        job, rest = words[0], words[1:]
        if job == "--version":
            from pcjax import __version__

            return _print(__version__)
        if job == "list":
            return _list(rest)
        if job in JOBS:
            return _train(job, rest, resume)
        if job in ON_RUNS:
            return _on_run(job, rest)
        from pcjax._checks import require_name

        require_name("job", job, (*JOBS, *ON_RUNS, "list"))
    except RequestError as error:
        return _fail(str(error), 2)
    except FailedError as error:
        return _fail(str(error), 1)
    except BrokenPipeError:
        return _unread()
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        return _fail(f"{path}{error.strerror or error}; then repeat: {resume}", 1)
    except Exception:
        traceback.print_exc()
        _end_all_processes()
        return 1
    return 0


def _train(job: str, words: list[str], resume: str) -> int:
    """Run a job that trains, with a config and the fields that the command line overrides."""
    path = words.pop(0) if words and not words[0].startswith("-") else None
    workdir = pathlib.Path("runs", _name_of(path) + WORKDIRS[job])
    if "--help-all" in words:
        from pcjax.overrides import describe_fields

        return _print(describe_fields())
    from pcjax import multihost, overrides
    from pcjax.config import Config, read_config
    from pcjax.display import Display
    from pcjax.run import unlock_folder
    from pcjax.training.checkpoint import UnsavedError
    from pcjax.training.stopping import StoppedError

    options = overrides.parse(words)
    if options.pop("no_cache", None) is None:
        use_compilation_cache()
    multihost.join_processes()
    given = options.pop("workdir", None)
    workdir = workdir if given is None else pathlib.Path(overrides.one_word("workdir", given))
    if "dry_run" in options:
        return _plan(job, path, workdir, options)
    config = Config() if path is None else read_config(path)
    config = overrides.apply(config, job, options).with_absolute_paths()
    run = getattr(importlib.import_module(f"pcjax.jobs.{job}"), job)
    try:
        run(config, workdir, Display())
        return 0
    except StoppedError as stopped:
        return _fail(f"{stopped}; repeat the command to resume: {resume}", 128 + stopped.number)
    except UnsavedError as error:
        status = _fail(f"{error}. Free the disk, then repeat the command to resume: {resume}", 1)
        _exit_at_once(status)  # Orbax's threads would wait for the failed save for minutes
    finally:
        unlock_folder()


def _plan(job: str, path: str | None, workdir: pathlib.Path, options: dict[str, list[str]]) -> int:
    """Print what a training needs on each device; train nothing."""
    from pcjax import overrides
    from pcjax._checks import RequestError
    from pcjax.config import Config, read_config
    from pcjax.display import Display
    from pcjax.jobs.plan import Options, plan

    if job != "distill":
        raise RequestError("--dry-run is for `pcjax distill`, which plans the teacher too.")
    del options["dry_run"]
    own = {name: options.pop(name) for name in ("devices", "device") if name in options}
    config = overrides.apply(Config() if path is None else read_config(path), job, options)
    plan(config, workdir, Display(), overrides.decode_options(Options, own))
    return 0


def _on_run(job: str, words: list[str]) -> int:
    """Run a job on the folder of a finished run."""
    from pcjax import multihost, overrides
    from pcjax._checks import RequestError
    from pcjax.config import read_config
    from pcjax.display import Display

    if not words or words[0].startswith("-"):
        raise RequestError(f"`pcjax {job}` needs the folder of a run; give it first.")
    options = overrides.parse(words[1:])
    if options.pop("no_cache", None) is None:
        use_compilation_cache()
    multihost.join_processes()
    if "config" in options:  # reading it permits the python: functions that it names
        read_config(overrides.one_word("config", options.pop("config")))
    module = importlib.import_module(f"pcjax.jobs.{job}")
    if job == "embed" and words[0].endswith(".py"):
        config = overrides.apply(read_config(words[0]), "distill", options)
        module.embed_teacher(config.with_absolute_paths(), Display())
        return 0
    folder, display = pathlib.Path(words[0]), Display()
    if job == "evaluate":
        module.evaluate(folder, display, overrides.decode_options(module.Extras, options))
    elif job == "export":
        module.export(folder, display, overrides.decode_options(module.Options, options))
    else:
        overrides.decode_options(None, options)
        getattr(module, job)(folder, display)
    return 0


def _list(words: list[str]) -> int:
    """Print the names of losses, models or sources, with a few facts about each."""
    from pcjax import _checks
    from pcjax.display import Display
    from pcjax.overrides import LISTS

    if not words:
        raise _checks.RequestError(f"`pcjax list` needs one of {', '.join(LISTS)}.")
    _checks.require_name("list", words[0], LISTS)
    LISTS[words[0]](Display())
    return 0


def use_compilation_cache() -> None:
    """Keep compiled programs in the user's cache folder, for later commands.

    JAX_COMPILATION_CACHE_DIR chooses another folder; JAX then needs no help.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    import jax

    from pcjax import _io

    folder = _io.user_cache(f"jax-{jax.__version__}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _name_of(path: str | None) -> str:
    """Name a run after its config file, or after the folder of its config.json."""
    if path is None:
        return "digits"
    config = pathlib.Path(path)
    return config.resolve().parent.name if config.name == "config.json" else config.stem


def _help(words: Sequence[str]) -> str:
    """Return the help of a job, or of all jobs."""
    job = words[0] if words else ""
    if job in ("evaluate", "export"):
        return EVALUATE_HELP if job == "evaluate" else EXPORT_HELP
    if job not in JOBS:
        return HELP
    several = job in ("compare", "tune")
    losses = "losses to compare" if several else "losses to add up; `pcjax list losses`"
    extra = {
        "compare": "\n  --seeds N                        number of students of every loss [3]",
        "tune": "\n  --trials N                       number of settings of every loss [8]",
    }.get(job, "")
    example = {
        "distill": "pcjax distill --losses rkd --training.epochs 50 --workdir runs/rkd",
        "teach": "pcjax teach --teacher.training.epochs 60 --workdir runs/teacher",
        "compare": "pcjax compare --losses perception_coherence,rkd,info_nce --seeds 3",
        "tune": "pcjax tune --losses perception_coherence,rkd --trials 8",
    }[job]
    options = STUDENT_OPTIONS.format(losses=losses, extra=extra)
    options += DRY_RUN_OPTIONS if job == "distill" else ""
    return TRAINING_HELP.format(
        job=job,
        purpose=JOBS[job],
        workdir=f"runs/CONFIG{WORKDIRS[job]}",
        options=TEACHER_OPTIONS if job == "teach" else options,
        example=example,
    )


def _print(text: str) -> int:
    try:
        print(text, flush=True)  # noqa: T201
    except BrokenPipeError:
        return _unread()
    return 0


def _unread() -> int:
    """Silence the output that nobody reads any more; return the status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _fail(message: str, status: int) -> int:
    """Print one line to stderr; return the status."""
    line = " ".join(message.split())
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    if len(line) > MAX_LINE:
        line = f"{line[: MAX_LINE // 2]} ... {line[-MAX_LINE // 2 :]}"
    print(f"pcjax: {line}", file=sys.stderr)  # noqa: T201
    if status not in STOPPED:
        _end_all_processes(status)
    return status


def _end_all_processes(status: int = 1) -> None:
    """End this process at once if the job has several: JAX then ends the others."""
    multihost = sys.modules.get("pcjax.multihost")
    if multihost is not None and multihost.is_distributed():
        _exit_at_once(status)


def _exit_at_once(status: int) -> NoReturn:
    """Exit without waiting for the threads of other libraries."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
