"""The tables and the plot of `benchmarks.accelerator`, from its results."""

import pathlib
from collections.abc import Mapping
from typing import Any

from benchmarks.contenders import CONTENDERS, REFERENCE

Results = Mapping[str, Any]
RKD = "rkd distance"


def table(results: Results) -> str:
    """Format all results as Markdown."""
    if not results:
        return "No results yet."
    last = list(results.values())[-1]
    versions = {k: v for k, v in last.items() if k not in ("task", "seconds", "result", "error")}
    lines = [", ".join(f"{name} {value}" for name, value in versions.items()), ""]
    done = {name: record["result"] for name, record in results.items() if "result" in record}
    for section in (_losses, _choices, _training, _profile, _errors):
        lines += section(done)
    failed = {name: record["error"] for name, record in results.items() if "error" in record}
    lines += [f"{name} failed: {error}" for name, error in failed.items()]
    return "\n".join(lines)


def by_size(done: Results, part: str) -> dict[int, Any]:
    """Return the results of a part by the number of examples, the smallest first."""
    start = f"{part} n="
    sizes = {int(name[len(start) :]): x for name, x in done.items() if name.startswith(start)}
    return dict(sorted(sizes.items()))


def _grid(title: str, sizes: Mapping[int, Any], reference: str) -> list[str]:
    """Format medians in milliseconds, ratios to a reference, and sizes of temporaries."""
    if not sizes:
        return []
    names = dict.fromkeys(name for row in sizes.values() for name in row)
    lines = [f"| {title} | " + " | ".join(f"n = {n:,}" for n in sizes) + " |"]
    lines.append("|---|" + "---|" * len(sizes))
    for name in names:
        cells = [_cell(row, name, reference) for row in sizes.values()]
        if any(cells):
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _cell(row: Mapping[str, Any], name: str, reference: str) -> str:
    measured = row.get(name, {})
    if "ms" not in measured:
        return "failed" if "error" in measured else ""
    middle, low, high = measured["ms"]
    text = f"{middle:.3g} ({low:.3g}-{high:.3g})"
    base = row.get(reference, {}).get("ms")
    text += "" if base is None else f", {middle / base[0]:.2g} x"
    size = measured.get("bytes")
    return text + ("" if size is None else f", {size / 1e6:,.0f} MB")


def _losses(done: Results) -> list[str]:
    sizes = by_size(done, "loss")
    lines = _grid("loss and gradient, ms (quartiles), times ours, temporaries", sizes, REFERENCE)
    for n, row in sizes.items():
        ours = row.get(REFERENCE, {})
        peers = {
            name: x["ms"][0]
            for name, x in row.items()
            if "ms" in x and not name.startswith("pcjax") and name != RKD
        }
        if "ms" not in ours:
            continue
        parts = [f"n = {n:,}: first call {ours['first']:.1f} s"]
        if peers:
            nearest = min(peers, key=lambda name: peers[name])
            parts.append(f"{peers[nearest] / ours['ms'][0]:.1f} x as fast as {nearest}")
        if "ms" in row.get(RKD, {}):
            parts.append(f"{ours['ms'][0] / row[RKD]['ms'][0]:.1f} x the time of {RKD}")
        lines.append("- " + "; ".join(parts))
    return [*lines, ""]


def _choices(done: Results) -> list[str]:
    return _grid("candidate, ms (quartiles)", by_size(done, "choice"), "loss, library")


def _training(done: Results) -> list[str]:
    lines = []
    for name, row in done.items():
        if name.startswith("training "):
            lines.append(
                f"- {name.removeprefix('training ')}, batch {row['batch']}, {row['compute']}: "
                f"{row['images/s']:,.0f} images a second, a bare loop {row['bare images/s']:,.0f}; "
                f"{row['ratio']:.2f} x"
            )
    return [*lines, ""]


def _profile(done: Results) -> list[str]:
    if "profile" not in done:
        return []
    row = done["profile"]
    copied = row["GB/s"].get("copy")
    rates = [
        f"{name} {rate:,.0f} GB/s" + (f" ({rate / copied:.0%})" if copied else "")
        for name, rate in row["GB/s"].items()
    ]
    lines = [f"Memory at n = {row['n']:,}: {', '.join(rates)}.", ""]
    lines += ["| kernel | ms a call |", "|---|---|"]
    return [*lines, *(f"| `{name}` | {ms:.3f} |" for name, ms in row["kernels"].items()), ""]


def _errors(done: Results) -> list[str]:
    checked = {name.removeprefix("correct "): x for name, x in done.items() if "correct" in name}
    if not checked:
        return []
    lines = ["| largest error | " + " | ".join(checked) + " |", "|---|" + "---|" * len(checked)]
    for name in dict.fromkeys(name for row in checked.values() for name in row):
        cells = [f"{row[name]:.1e}" if name in row else "" for row in checked.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def plot(results: Results, path: pathlib.Path) -> None:
    """Draw the time of loss and gradient against n, both logarithmic."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    done = {name: record["result"] for name, record in results.items() if "result" in record}
    sizes = by_size(done, "loss")
    if not sizes:
        return
    figure, axes = plt.subplots(figsize=(8, 6), layout="constrained")
    for name in CONTENDERS:
        points = [(n, row[name]["ms"][0]) for n, row in sizes.items() if "ms" in row.get(name, {})]
        if points:
            style = {
                "lw": 2.5 if name == REFERENCE else 1,
                "ls": "-" if name.startswith("pcjax") else "--",
            }
            axes.loglog(*zip(*points, strict=True), marker="o", label=name, **style)
    axes.set(xlabel="examples in the batch", ylabel="loss and gradient, milliseconds")
    axes.set_title(list(results.values())[-1]["device"])
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    figure.savefig(path, dpi=120)
