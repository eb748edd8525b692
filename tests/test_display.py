"""A person sees how far a training is: a moving line in a terminal, plain lines elsewhere."""

import io

import pytest
from rich.console import Console

from pcjax import display
from pcjax.display import Display


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
    text = io.StringIO()
    made = Display()
    options = {"highlight": False, "soft_wrap": True}
    made._console = Console(file=text, force_terminal=terminal, width=120, **options)
    return made, text


def test_lines_come_every_ten_seconds_and_leave_out_the_compilation(clock):
    made, text = shown(terminal=False)
    with made.progress("student", 1000, 0) as progress:
        clock.now += 60  # the first step is compiled
        progress.compiled(1)
        for step in range(2, 101):
            clock.now += 1.25
            progress.show(step, {"loss": 1 / step} if step % 50 == 0 else None)
        progress.finish({"coherence": 0.9})
    lines = text.getvalue().splitlines()
    assert lines[0] == "student: compiling the step, then 1000 steps"
    assert 124 / 12 <= len(lines) - 2 <= 124 / 9
    assert all("0.8 steps/s" in line for line in lines[1:-1])
    assert lines[2].endswith(" s left")
    assert "loss" not in lines[3]
    assert "loss 0.0100  coherence 0.9000" in lines[-1]
    assert lines[-1].startswith("student: step 1000 of 1000")


def test_quick_steps_are_reported_once(clock):
    made, text = shown(terminal=False)
    with made.progress("student", 1000, 0) as progress:
        progress.compiled(1)
        for step in range(2, 1001):
            clock.now += 0.001
            progress.show(step, {"loss": 0.5})
        progress.finish()
    assert [line.split("  ")[0] for line in text.getvalue().splitlines()][1:] == [
        "student: step 1000 of 1000"
    ]


def test_a_terminal_shows_a_bar(clock):
    made, text = shown(terminal=True)
    with made.progress("student", 100, 0) as progress:
        progress._bar.refresh()
        assert "compiling" in text.getvalue()
        progress.compiled(1)
        clock.now += 5
        progress.show(6, {"loss": 0.25})
        progress._bar.refresh()
    assert "6/100" in text.getvalue()
    assert "1 steps/s  loss 0.2500  94 s left" in text.getvalue()


def test_names_are_no_markup_and_move_no_cursor(capsys):
    made = Display()
    made.table("on arrays:/x/[bold]/[/x]", ["[red]", "b"], [["[/nothing]", "\x1b[2J"]])
    made.say("[/x] \x1b[2J \x07")
    output = capsys.readouterr().out
    for text in ("on arrays:/x/[bold]/[/x]", "[red]", "[/nothing]"):
        assert text in output
    assert "\x1b" not in output
    assert "\x07" not in output


@pytest.mark.parametrize("width", [80, 120])
def test_a_table_fits_a_terminal(width):
    text = io.StringIO()
    made = Display()
    made._console = Console(file=text, width=width)
    made.table("title", ["", "teacher", "student"], [["k-NN accuracy", "98.9 %", "97.2 %"]])
    assert max(map(len, text.getvalue().splitlines())) <= width
