"""Measure the processor time of a training's moving line, drawn as in a terminal.

    python -m benchmarks.display [--seconds 20] [--rate 100] [--log-every 50]

Nothing is trained: for so many seconds the line gets as many steps as a training of that rate would
report. The processor time is compared with the time that passed.
"""

import argparse
import io
import time

from rich.console import Console

from pcjax.display import Display


class Terminal(Display):
    """A display whose terminal is a string."""

    def __init__(self) -> None:
        self._console = Console(file=io.StringIO(), force_terminal=True, width=120)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument(
        "--rate",
        type=float,
        default=100,
        help="steps a second; about that of the digits config",
    )
    parser.add_argument("--log-every", type=int, default=50)
    arguments = parser.parse_args()
    steps = round(arguments.seconds * arguments.rate)
    with Terminal().progress("student", steps, 0) as progress:
        progress.compiled(0)
        busy, began = time.process_time(), time.perf_counter()
        for step in range(1, steps + 1):
            time.sleep(max(0.0, began + step / arguments.rate - time.perf_counter()))
            progress.show(step)
            if step % arguments.log_every:
                continue
            progress.show(step, {"loss": 1 / step, "coherence": 0.5, "gradient_norm": 1.0})
        busy, passed = time.process_time() - busy, time.perf_counter() - began
    share = f"{100 * busy / passed:.2f} % of one core"
    print(f"{1e3 * busy:.0f} ms of processor time in {passed:.1f} s: {share}")


if __name__ == "__main__":
    main()
