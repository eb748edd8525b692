"""Show a job's progress: a moving line in a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from pcjax._checks import printable

SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_UPDATES = 10.0, 0.5
SHOWN = ("loss", "coherence", "accuracy", "skipped")


class Display:
    """Print on the first process of a job only."""

    def __init__(self, quiet: bool = False):
        quiet = quiet or jax.process_index() != 0
        self._console = Console(quiet=quiet, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(printable(text), markup=False)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """Print a small table; the first column names the rows."""
        table = Table(title=Text(printable(title)), title_justify="left")
        for place, column in enumerate(columns):
            first = place == 0
            name = Text(printable(column))
            table.add_column(name, justify="left" if first else "right", no_wrap=first)
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        self._console.print(table)

    @contextlib.contextmanager
    def progress(self, name: str, steps: int, start: int) -> Iterator["TrainingProgress"]:
        """Show the progress of a training inside the context."""
        if not self._console.is_terminal:
            yield TrainingProgress(self, name, steps, start, None)
            return
        text = TextColumn("{task.fields[shown]}")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), text)
        with Progress(*columns, console=self._console, refresh_per_second=2) as bar:
            bar.add_task(name, total=steps, completed=start, shown="compiling")
            yield TrainingProgress(self, name, steps, start, bar)

    @contextlib.contextmanager
    def counting(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show how many of a number of things are done; the context gives the function to call."""
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            with Progress(*columns, console=self._console, transient=True) as bar:
                task = bar.add_task(name, total=total)
                yield lambda done: bar.update(task, completed=done)
            return
        start = last = time.perf_counter()

        def count(done: int) -> None:
            nonlocal last
            now = time.perf_counter()
            if now - last >= SECONDS_BETWEEN_LINES:
                last = now
                left = (now - start) * (total - done) / max(done, 1)
                self.say(f"{name}: {done:,} of {total:,}, {left:.0f} s left")

        yield count


class TrainingProgress:
    """Report the steps of one training; the rate leaves out the compilation."""

    def __init__(self, display: Display, name: str, steps: int, start: int, bar: Progress | None):
        self._display, self._name, self._steps, self._bar = display, name, steps, bar
        self._first, self._first_time = start, 0.0  # the first step that counts for the rate
        self._values: dict[str, float] = {}
        self._interval = SECONDS_BETWEEN_LINES if bar is None else SECONDS_BETWEEN_UPDATES
        self._next = time.perf_counter() + self._interval
        if bar is None and start < steps:
            display.say(f"{name}: compiling the step, then {steps - start} steps")

    def compiled(self, step: int) -> None:
        """Start measuring: this first step contained the compilation."""
        self._first, self._first_time = step, time.perf_counter()

    def show(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """Report a step, and the latest metrics where there are new ones."""
        self._values |= values or {}
        now = time.perf_counter()
        if now >= self._next and step < self._steps:
            self._next = now + self._interval
            self._print(step, now)

    def finish(self, values: Mapping[str, float] | None = None) -> None:
        """Report the last step."""
        self._values |= values or {}
        self._print(self._steps, time.perf_counter())

    def _print(self, step: int, now: float) -> None:
        shown = [f"{name} {self._values[name]:.4f}" for name in SHOWN if name in self._values]
        seconds = now - self._first_time
        if self._first_time and step > self._first and seconds > 0:
            rate = (step - self._first) / seconds
            shown = [f"{rate:.3g} steps/s", *shown]
            if step < self._steps:
                shown.append(f"{(self._steps - step) / rate:.0f} s left")
        text = "  ".join(shown)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, shown=text)
        else:
            self._display.say(f"{self._name}: step {step} of {self._steps}  {text}")
