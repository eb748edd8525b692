"""Count what each device ranks, computes and receives for the loss, over 1 to 8 devices.

    python -m benchmarks.scaling [--examples 4096] [--devices 1 2 4 8]

Strong scaling shares so many examples; weak scaling gives so many to each device. The counts come
from the traced program: they are those of any device, and none is needed.
"""

import argparse
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from pcjax.losses import perception_coherence
from pcjax.training.plan import count_traffic

AXIS = "batch"
STUDENT_FEATURES, TEACHER_FEATURES = 128, 512


def counts(total: int, devices: int) -> dict[str, int]:
    """Return the products and the bytes gathered on one device, for loss and gradient."""
    specs = {"in_specs": (P(AXIS), P(AXIS)), "out_specs": (P(), P(AXIS)), "check_vma": False}

    def loss(student: jax.Array, teacher: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.value_and_grad(perception_coherence)(student, teacher, axis_name=AXIS)

    mapped = jax.shard_map(loss, mesh=AbstractMesh((devices,), (AXIS,)), **specs)
    shapes = [
        jax.ShapeDtypeStruct((total, width), jnp.float32)
        for width in (STUDENT_FEATURES, TEACHER_FEATURES)
    ]
    return count_traffic(jax.make_jaxpr(mapped)(*shapes).jaxpr)


def rows(examples: int, devices: list[int]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| scaling | devices | examples | ranked on each | GFLOP on each | MB gathered by each |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name in ("strong", "weak"):
        for count in devices:
            total = examples if name == "strong" else examples * count
            found = counts(total, count)
            pairs, flops = total * total // count, found["flops"] / 1e9
            gathered = found["all_gather"] / 1e6
            yield f"| {name} | {count} | {total:,} | {pairs:,} | {flops:.3g} | {gathered:.3g} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=4096)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    arguments = parser.parse_args()
    for line in rows(arguments.examples, arguments.devices):
        print(line)


if __name__ == "__main__":
    main()
