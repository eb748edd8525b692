"""What a person sees while a job runs: a line that moves in a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any, cast

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pcjax._checks import OutputClosedError, printable

SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_LOOKS = 10.0, 0.5


unsaid: list[OSError] = []  # why something could not be shown, the last time


class _Console(Console):
    """One that leaves it to the command what becomes of a pipe that nobody reads."""

    def on_broken_pipe(self) -> None:
        raise OutputClosedError


class Display:
    """Only the first of several processes shows anything."""

    def __init__(self, quiet: bool = False):
        quiet = quiet or jax.process_index() != 0
        self._console = _Console(
            file=cast(IO[str], _Output()), quiet=quiet, highlight=False, soft_wrap=True
        )

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(printable(text), markup=False)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """A small table; the first column names the rows."""
        table = Table(title=Text(printable(title)), title_justify="left")
        for place, column in enumerate(columns):
            table.add_column(
                Text(printable(column)),
                justify="left" if place == 0 else "right",
                no_wrap=place == 0,
            )
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        self._console.print(table)

    @contextlib.contextmanager
    def progress(self, name: str, steps: int, at: int) -> Iterator["ShownProgress"]:
        """Shows how far a training is, while inside."""
        if not self._console.is_terminal:
            yield ShownProgress(self, name, steps, at, None)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, refresh_per_second=2) as bar:
            bar.add_task(name, total=steps, completed=at, shown="")
            yield ShownProgress(self, name, steps, at, bar)


class _Output:
    """Standard output, of which what finds no room, as where its file lies on a full disk, is no reason to end."""

    def write(self, text: str) -> int:
        """Tries to; who reads a pipe and stops doing so ends the job all the same."""
        with self._unless_full():
            sys.stdout.write(text)
        return len(text)

    def flush(self) -> None:
        """Tries to."""
        with self._unless_full():
            sys.stdout.flush()

    @contextlib.contextmanager
    def _unless_full(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            unsaid[:] = [error]

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)


class ShownProgress:
    """The progress of one training."""

    def __init__(self, display: Display, name: str, steps: int, at: int, bar: Progress | None):
        self._display, self._name, self._steps, self._bar = display, name, steps, bar
        self._at, self._since = at, time.perf_counter()
        self._values: dict[str, float] = {}
        self._said = False
        self._rate = 0.0  # of the steps since the last look: compiling the first step does not count for ever
        self._every = SECONDS_BETWEEN_LINES if bar is None else SECONDS_BETWEEN_LOOKS
        self._next_look = self._since + self._every

    def show(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """That step has been taken, and the latest numbers where there are new ones; told of every step."""
        now = time.perf_counter()
        if values is None and now < self._next_look:
            return
        self._values |= values or {}
        if step > self._at:
            self._rate = (step - self._at) / max(now - self._since, 1e-9)
            self._at, self._since = step, now
        rate = self._rate
        wanted = {
            name: self._values[name]
            for name in ("loss", "coherence", "accuracy", "skipped")
            if name in self._values
        }
        shown = "  ".join(
            [f"{rate:.3g} steps/s", *(f"{name} {value:.4f}" for name, value in wanted.items())]
        )
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, shown=shown)
        elif now >= self._next_look or not self._said or step == self._steps:
            left = (self._steps - step) / max(rate, 1e-9)
            self._display.say(
                f"{self._name}: step {step} of {self._steps}  {shown}  {left:.0f} s left"
            )
            self._said = True
        else:
            return
        self._next_look = now + self._every
