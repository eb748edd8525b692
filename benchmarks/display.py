"""What the display takes of a training: processor time of the moving line, drawn as if in a terminal.

    python -m benchmarks.display [--seconds 20] [--rate 100] [--log-every 50]

Nothing is trained: the line is shown for so many seconds, told of a step as often as a training of that many steps a
second would tell it, and the processor time that this takes is set against the time that passed.
"""

import argparse
import io
import time

from rich.console import Console

from pcjax.training.display import Display


class Terminal(Display):
    """A display whose terminal is a string."""

    def __init__(self) -> None:
        self._console = Console(file=io.StringIO(), force_terminal=True, width=120)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument(
        "--rate",
        type=float,
        default=100,
        help="steps a second; the digits config takes about as many",
    )
    parser.add_argument("--log-every", type=int, default=50)
    arguments = parser.parse_args()
    steps = round(arguments.seconds * arguments.rate)
    with Terminal().progress("student", steps, 0) as progress:
        busy, began = time.process_time(), time.perf_counter()
        for step in range(1, steps + 1):
            time.sleep(max(0.0, began + step / arguments.rate - time.perf_counter()))
            progress.show(step)
            if step % arguments.log_every:
                continue
            progress.show(step, {"loss": 1 / step, "coherence": 0.5, "gradient_norm": 1.0})
        busy, passed = time.process_time() - busy, time.perf_counter() - began
    print(
        f"{1e3 * busy:.0f} ms of processor time in {passed:.1f} s: {100 * busy / passed:.2f} % of one core"
    )


if __name__ == "__main__":
    main()
