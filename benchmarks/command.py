"""Measure where the time of `pcjax distill` on the digits goes, from prompt to prompt.

    python -m benchmarks.command

The first run compiles everything, into a new cache; the second one finds it there.
"""

import os
import subprocess
import sys
import tempfile
import time

PARTS = {  # functions that take most of the time, in the modules that call them
    "data": ("pcjax.jobs.distill", "load_data"),
    "teacher": ("pcjax.jobs.distill", "load_teacher"),
    "student": ("pcjax.jobs.distill", "train"),
    "evaluation": ("pcjax.jobs.distill", "evaluate"),
    "report": ("pcjax.jobs.common", "write_report"),
}
COMPILING = ("backend_compile_duration", "jaxpr_to_mlir_module_duration")


def run(start: float) -> None:
    """Run the command in this process and print the seconds of its parts."""
    import importlib

    import jax

    importlib.import_module("pcjax.overrides")
    importlib.import_module("pcjax.jobs.distill")
    seconds = {"start and imports": time.time() - start}
    compiling = [0.0]

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith(COMPILING):
            compiling[0] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    compiled = {"start and imports": 0.0}

    def timed(name: str, module: str, function: str) -> None:
        owner = importlib.import_module(module)
        original = getattr(owner, function)

        def wrapped(*args: object, **kwargs: object) -> object:
            before, begun = compiling[0], time.time()
            try:
                return original(*args, **kwargs)
            finally:
                seconds[name] = seconds.get(name, 0) + time.time() - begun
                compiled[name] = compiled.get(name, 0) + compiling[0] - before

        setattr(owner, function, wrapped)

    for name, place in PARTS.items():
        timed(name, *place)
    from pcjax import cli

    with tempfile.TemporaryDirectory() as folder:
        cli.main(["distill", "--workdir", f"{folder}/run"])
    total = time.time() - start
    seconds["everything else"] = total - sum(seconds.values())
    compiled["everything else"] = compiling[0] - sum(compiled.values())
    print("\n| part | seconds | of these compiling |\n|---|---:|---:|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.1f} | {compiled[name]:.1f} |")
    print(f"| all | {total:.1f} | {compiling[0]:.1f} |")


def main() -> None:
    """Run the command in fresh processes, without and with what an earlier one has compiled."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        for title in ("nothing compiled before", "a second time"):
            print(f"\n{title}")
            code = f"from benchmarks.command import run; run({time.time()})"
            subprocess.run([sys.executable, "-c", code], env=environment, check=True)  # noqa: S603


if __name__ == "__main__":
    main()
