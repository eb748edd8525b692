"""`pcjax JOB [CONFIG] [--workdir DIR] [--section.field value ...]`."""

import argparse
import atexit
import contextlib
import dataclasses
import errno
import gc
import importlib
import io
import os
import pathlib
import re
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

from pcjax._checks import OutputClosedError, RequestError, interruption, printable

if TYPE_CHECKING:
    from pcjax.config import Config, Loss

T = TypeVar("T")
USAGE = """pcjax transfers the representation of a large teacher model to a lightweight student.

  pcjax distill [CONFIG] [--workdir DIR] [--section.field value ...]   train a student, and its teacher if it has none
  pcjax teach   [CONFIG] [--workdir DIR] [--section.field value ...]   train the teacher alone
  pcjax compare [CONFIG] --losses a,b,c [--seeds N] [...]              students of several losses, side by side
  pcjax tune    [CONFIG] --losses a,b,c [--trials N] [...]             each loss's settings, chosen on validation
  pcjax evaluate RUN [--other SOURCE --other-dir DIR] [--corruptions [NAME ...]] [--throughput]
                                                                       a run's tables once more, and what else is asked
  pcjax embed RUN                                                      write its features, RUN/features.npz
  pcjax export RUN                                                     the student alone, RUN/student.safetensors
  pcjax report RUN                                                     draw it: RUN/report.html

CONFIG is a Python file that sets `config` (it is run), or the config.json of a run; without one, the digits that come
with the installation. RUN and DIR are folders; a command that was stopped goes on when it is given again.
`pcjax distill --help` lists every field.
"""
# Threads of Orbax that wait for ten minutes for the parts of a save that will never come.
LEFT_BEHIND = ("json_ch_save", "np_type_handler", "write_metadata_after_commits")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 3.0  # seconds for those that end by themselves
TRAINED = ("distill", "teach", "compare", "tune")
LOOKED_AT = ("evaluate", "embed", "export", "report")
LONGEST_LINE = 2000
_BROKEN = re.compile("gloo|connection|socket|peer|heartbeat|coordination|barrier", re.IGNORECASE)
NO_PATH = (
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.EINVAL,
    errno.EOPNOTSUPP,
)
CLOSED = (errno.EACCES, errno.EPERM)
FULL_OR_BROKEN = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EROFS,
    errno.EFBIG,
    errno.ESTALE,
    errno.ETIMEDOUT,
)
SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def command() -> None:
    """What the shell runs: `main`, with an end that does not wait for what a save that failed has left behind.

    A signal that comes when all is done, while the interpreter takes itself down, does not change the exit status.
    """
    _open_streams()
    sys.unraisablehook = _told_of
    status: Any = None

    def over(number: int, _: object) -> None:
        _leave(status if isinstance(status, int) else 128 + number)

    atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in SIGNALS])
    for number in SIGNALS:
        signal.signal(number, over)
    try:
        main()
        status = 0
    except SystemExit as ended:
        status = ended.code or 0
    status = _with_output(status)
    waiting = [thread for thread in threading.enumerate() if thread.name in LEFT_BEHIND]
    until = time.monotonic() + GRACE
    for thread in waiting:
        thread.join(max(until - time.monotonic(), 0))
    if any(thread.is_alive() for thread in waiting) and isinstance(status, int):
        _leave(status)
    sys.exit(status)


def _told_of(ignored: Any) -> None:
    """What nobody can catch, but what other parts of a read that failed or was stopped say when they end later."""
    if str(ignored.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(ignored)


def _open_streams() -> None:
    """Whoever starts a command may have closed its output, or have one that cannot say every character."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            # Nothing else that is opened may take their places: what is written there must not end in a file.
            place = os.open(os.devnull, os.O_WRONLY)
            if place != number:
                os.dup2(place, number)
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
        elif stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def _with_output(status: Any) -> Any:
    """The exit status, which is not 0 if what was said could not be written; nobody tries that again."""
    display = sys.modules.get("pcjax.training.display")
    unsaid = [] if display is None else [*display.unsaid]
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        unsaid.append(error)
    if status == 0 and unsaid:
        with contextlib.suppress(OSError):
            print(
                f"pcjax: all is done, but could not all be told: {unsaid[0].strerror}",
                file=sys.stderr,
            )  # noqa: T201
        return 1
    return status


def _leave(status: int) -> None:
    """Ends the process without waiting for anything."""
    with contextlib.suppress(
        RuntimeError, OSError
    ):  # it may just be writing, or nobody may read it any more
        sys.stdout.flush()
        sys.stderr.flush()
    together = _together()
    if together is not None:
        together.part()
    os._exit(status)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command, and exits with what HOUSE promises: 0, 2 for a wrong request, 128 + signal, 1 for the rest."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    again = shlex.join(["pcjax", *given])
    try:
        if not given or given[0] in ("-h", "--help"):
            print(USAGE)  # noqa: T201
            return
        with _signals_stop():
            _run(given[0], given[1:])
    except RequestError as error:
        _fail(str(error))
    except _StoppedBySignal as stopped:
        name = signal.Signals(stopped.number).name
        _fail(f"stopped by {name}; what was saved stays; to go on: {again}", 128 + stopped.number)
    except KeyboardInterrupt:
        _fail(f"stopped by SIGINT; what was saved stays; to go on: {again}", 128 + signal.SIGINT)
    except (BrokenPipeError, OutputClosedError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _end(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno in NO_PATH and error.filename:
            _fail(f"{error.filename}: {error.strerror}: expected a path that can be, give another")
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        if error.errno in CLOSED:
            _fail(
                f"{what}: expected what this user may read, and a --workdir to write in; see to that, or give others"
            )
        if error.errno not in (*FULL_OR_BROKEN, *SHORT_OF):
            _unforeseen(error)
            raise
        short_of = (
            "the machine's memory"
            if error.errno == errno.ENOMEM
            else "how many files may be open (ulimit -n)"
        )
        see_to = "the disk" if error.errno in FULL_OR_BROKEN else short_of
        _fail(f"{what}: see to {see_to}; what was saved stays; to go on: {again}", 1)
    except Exception as error:
        _unforeseen(error)
        raise


class _StoppedBySignal(BaseException):
    """Not an Exception, so that no one who expects a damaged file or a failing config takes it for that."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def _signals_stop() -> Iterator[None]:
    """While inside, and unless a training has its own way with it, SIGTERM ends the command as Ctrl-C does."""

    def stop(number: int, _: object) -> None:
        raise _StoppedBySignal(number)

    def once_more(ignored: Any) -> None:
        if isinstance(ignored.exc_value, _StoppedBySignal):
            threading.Timer(0.01, tell, [ignored.exc_value.number]).start()
        else:
            unraisable(ignored)

    def tell(number: int) -> None:
        if inside:
            os.kill(os.getpid(), number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    inside = True
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    # What is raised in a finalizer or while garbage is collected is ignored: a signal that comes just then comes again.
    unraisable, sys.unraisablehook = sys.unraisablehook, once_more
    try:
        yield
    except Exception as error:
        stopped = interruption(error)
        if not isinstance(stopped, (_StoppedBySignal, KeyboardInterrupt)):
            raise
        raise stopped from error
    finally:
        inside = False
        sys.unraisablehook = unraisable
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(message: str, status: int = 2, agreed: bool = False) -> None:
    line = printable(" ".join(message.split()))
    # What was given may be of any length; what was expected stands at the end.
    line = (
        line
        if len(line) <= LONGEST_LINE
        else f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
    )
    with contextlib.suppress(OSError):  # it may lie on the disk that is full
        print(f"pcjax: {line}", file=sys.stderr)  # noqa: T201
    _end(status, agreed)


def _end(status: int, agreed: bool = False) -> NoReturn:
    """Ends this process; the others of its job are told, unless all of them have agreed on it."""
    together = _together()
    if together is not None and not agreed:
        together.leave(status)
    sys.exit(status)


def _unforeseen(error: Exception) -> None:
    """In a job of several processes, ends this one and has the others told; a job of one has nobody to tell."""
    together = _together()
    if together is None or not together.joined():
        return
    others, status = None, 1
    with contextlib.suppress(Exception):
        others = together.left_by_others()
    # Whoever waits for one that has left or died learns it by a broken connection.
    if others is None and not _BROKEN.search(str(error)):
        traceback.print_exception(error)
        line = f"{type(error).__name__}: what led to it is above"
    else:
        line, status = together.why(others)
    _fail(line, status)


def _together() -> Any:
    """The module of jobs of several processes, if this may be one."""
    return sys.modules.get("pcjax.training.multihost_exit")


def _run(job: str, given: list[str]) -> None:
    if job == "--version":
        from pcjax import __version__

        print(__version__)  # noqa: T201
        return
    if job not in (*TRAINED, *LOOKED_AT):
        raise RequestError(
            f"unknown job {job!r}: expected one of {', '.join((*TRAINED, *LOOKED_AT))}"
        )
    if job in LOOKED_AT:
        if given in (["-h"], ["--help"]):
            print(USAGE)  # noqa: T201
            return
        many = (
            [one for one in given[1:2] if not one.startswith("-")]
            if job == "evaluate"
            else given[1:]
        )
        if not given or given[0].startswith("-") or many:
            raise RequestError(
                f"got {' '.join(given) or 'nothing'} for {job}: expected the folder of one run"
            )
        from pcjax.training.parallel import join_processes

        join_processes()
        from pcjax.jobs import evaluate
        from pcjax.jobs.export import export
        from pcjax.jobs.report import report
        from pcjax.training.display import Display

        if job == "evaluate":
            asked = _parsed(evaluate.Asked, evaluate.Asked(), "pcjax evaluate RUN", given[1:])
            evaluate.evaluate(pathlib.Path(given[0]), Display(), asked)
        else:
            {"embed": evaluate.embed, "export": export, "report": report}[job](
                pathlib.Path(given[0]), Display()
            )
        return
    _train(job, given)


def _train(job: str, given: list[str]) -> None:
    again = shlex.join(["pcjax", job, *given])
    from pcjax.training.parallel import join_processes

    join_processes()
    from pcjax.config import Config, read
    from pcjax.run import from_the_root
    from pcjax.training.checkpoint import UnsavedError
    from pcjax.training.disk import let_go
    from pcjax.training.display import Display
    from pcjax.training.guard import BadStepsError
    from pcjax.training.stopping import StoppedError

    path = given.pop(0) if given and not given[0].startswith("-") else None
    config = Config() if path is None else read(path)
    if job in ("compare", "tune"):
        config = _compared(config, given)
    config, folder = _overridden(job, _with_arguments(config, given), path, given)
    # Through JSON once, so that what is stored is exactly what is run, numbers as their fields' types.
    config = from_the_root(Config.from_json(config.to_json()))
    run = getattr(importlib.import_module(f"pcjax.jobs.{job}"), job)
    try:
        run(config, folder, Display())
    except StoppedError as stopped:
        _fail(f"{stopped}; to go on: {again}", 128 + stopped.number, agreed=True)
    except UnsavedError as unsaved:
        _fail(f"{unsaved}: see to the disk; to go on from there: {again}", 1, agreed=True)
    except BadStepsError as bad:
        _fail(str(bad), 1, agreed=True)
    finally:
        let_go()


def _compared(config: "Config", given: list[str]) -> "Config":
    """The config with the contenders, seeds and trials that the command line names, which are taken out of it."""
    from pcjax.jobs.recipes import contenders

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--losses")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--trials", type=int)
    try:
        asked, given[:] = parser.parse_known_args(given)
    except argparse.ArgumentError as error:
        raise RequestError(str(error)) from error
    there = config.comparison
    if asked.losses is not None:
        there = dataclasses.replace(
            there, contenders=contenders(asked.losses.split(","), there.contenders)
        )
    numbers = {name: n for name in ("seeds", "trials") if (n := getattr(asked, name)) is not None}
    return dataclasses.replace(config, comparison=dataclasses.replace(there, **numbers))


def _with_arguments(config: "Config", given: list[str]) -> "Config":
    """The config with what only the command line names, which is taken out of it.

    That is, arguments of the losses, and numbers in the place of ramps.
    """
    losses = list(config.losses)
    for word in [word for word in given if word.startswith("--losses.")]:
        name, _, value = word.partition("=")
        found = re.fullmatch(r"--losses\.(\d+)\.(?:weight|arguments\.(\w+))", name)
        if found is None or int(found[1]) >= len(losses) or _has(losses[int(found[1])], found[2]):
            continue
        at, place = given.index(word), int(found[1])
        if "=" not in word:
            if at + 1 == len(given) or given[at + 1].startswith("--"):
                raise RequestError(f"got {name} without a value: expected one")
            value = given.pop(at + 1)
        given.pop(at)
        if found[2] is None:
            losses[place] = dataclasses.replace(losses[place], weight=_number(name, value))
            continue
        arguments = losses[place].arguments | {found[2]: _value(value)}
        losses[place] = dataclasses.replace(losses[place], arguments=arguments)
    return dataclasses.replace(config, losses=tuple(losses))


def _has(loss: "Loss", argument: str | None) -> bool:
    """Whether tyro knows the argument, or the weight, as one word; a ramp it knows by its fields."""
    from pcjax.config import Ramp

    there = loss.weight if argument is None else loss.arguments.get(argument)
    return there is not None and not isinstance(there, Ramp)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RequestError(f"got {name} {text!r}: expected a number") from None


def _value(text: str) -> bool | int | float | str:
    """A loss's argument as it was meant."""
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _overridden(
    job: str, config: "Config", path: str | None, given: list[str]
) -> tuple["Config", pathlib.Path]:
    """The config with what the command line says instead, and the folder."""
    import tyro

    from pcjax.config import Config

    name = "digits" if path is None else pathlib.Path(path).stem
    if path is not None and pathlib.Path(path).name == "config.json":
        name = pathlib.Path(path).resolve().parent.name

    name += {"teach": "-teacher", "compare": "-compared", "tune": "-tuning"}.get(job, "")

    @dataclasses.dataclass(frozen=True)
    class Asked:
        config: Annotated[tyro.conf.AvoidSubcommands[Config], tyro.conf.arg(name="")]
        workdir: pathlib.Path = pathlib.Path("runs") / name
        """folder of the run; a new one, or one to go on in"""

    asked = _parsed(
        Asked, Asked(_narrowed(config)), f"pcjax {job} [CONFIG]", given, tyro.conf.FlagConversionOff
    )
    return asked.config, asked.workdir


def _narrowed(config: "Config") -> "Config":
    """The same, with losses whose weight is declared as what it is: of a number or a ramp tyro makes no flag."""
    from pcjax.config import Loss

    @dataclasses.dataclass(frozen=True)
    class Weighted(Loss):
        weight: float = 1.0

    def narrowed(loss: Loss) -> Loss:
        told = {field.name: getattr(loss, field.name) for field in dataclasses.fields(Loss)}
        return Weighted(**told) if isinstance(loss.weight, (int, float)) else loss

    def of(losses: tuple[Loss, ...]) -> tuple[Loss, ...]:
        return tuple(map(narrowed, losses))

    there = config.comparison
    contenders = tuple(dataclasses.replace(one, losses=of(one.losses)) for one in there.contenders)
    comparison = dataclasses.replace(there, contenders=contenders)
    return dataclasses.replace(config, losses=of(config.losses), comparison=comparison)


def _parsed(cls: type[T], default: T, prog: str, given: list[str], *how: Any) -> T:
    """What the command line says, as the fields of that class."""
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), _no_collection():
            return tyro.cli(cls, prog=prog, args=given, default=default, config=how)
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        raise RequestError(_one_line(said.getvalue())) from exit_


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Before Python 3.11.8, a collection of garbage can fail the parsing of source code, as tyro does (gh-106905)."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _one_line(text: str) -> str:
    """What is said in a box of several lines."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    plain = re.sub(r"[─━│╭╮╰╯┃┏┓┗┛]+|-{8,}", " ", plain)
    return " ".join(plain.split())
