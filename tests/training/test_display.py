"""What a person sees while a model trains: a line that moves in a terminal, plain lines now and then elsewhere."""

import io
import re

import pytest
from rich.console import Console

from pcjax.training import display
from pcjax.training.display import Display


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""

    class Clock:
        now = 1000.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    return clock


def shown(terminal):
    """A display, and what it has written so far."""
    text = io.StringIO()
    found = Display()
    found._console = Console(
        file=text, force_terminal=terminal, width=120, highlight=False, soft_wrap=True
    )
    return found, text


def test_lines_come_every_ten_seconds_however_slow_the_steps(clock):
    where, text = shown(terminal=False)
    with where.progress("student", 1000, 0) as progress:
        for step in range(1, 101):
            clock.now += 1.4
            progress.show(step)
            if step % 50 == 0:
                progress.show(step, {"loss": 1 / step})
    lines = text.getvalue().splitlines()
    assert 140 / 12 <= len(lines) <= 140 / 9
    assert lines[0].startswith("student: step 8 of 1000  0.714 steps/s  1389 s left")
    assert all("0.714 steps/s" in line for line in lines)
    assert "loss" not in lines[3]
    assert "loss 0.0200" in lines[-1]


def test_quick_steps_are_shown_at_once_and_then_seldom(clock):
    where, text = shown(terminal=False)
    with where.progress("student", 1000, 0) as progress:
        for step in range(1, 1001):
            clock.now += 0.001
            progress.show(step)
            if step % 10 == 0:
                progress.show(step, {"loss": 0.5})
    lines = text.getvalue().splitlines()
    assert [re.search(r"step (\d+) of", line)[1] for line in lines] == ["10", "1000"]


def test_a_terminal_shows_the_time_left_before_the_first_metrics(monkeypatch):
    where, text = shown(terminal=True)
    monkeypatch.setattr(display, "SECONDS_BETWEEN_LOOKS", 0.0)
    with where.progress("student", 100, 0) as progress:
        for step in range(1, 6):
            progress.show(step)
        progress._bar.refresh()
        before = text.getvalue()
        progress.show(6, {"loss": 0.25})
    assert "5/100" in before
    assert "steps/s" in before
    assert re.search(r"0:00:\d\d", before)
    assert "loss 0.2500" in text.getvalue()


def test_names_are_no_markup_and_move_no_cursor(capsys):
    display = Display()
    display.table("on arrays:/x/[bold]/[/x]", ["[red]", "b"], [["[/nothing]", "\x1b[2J"]])
    display.say("[/x] \x1b[2J \x07")
    said = capsys.readouterr().out
    assert "on arrays:/x/[bold]/[/x]" in said
    assert "[red]" in said
    assert "[/nothing]" in said
    assert "\x1b" not in said
    assert "\x07" not in said
    assert said.count("\\x1b[2J") == 2
