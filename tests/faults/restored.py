"""Run as one or two processes: restores a checkpoint, spreads it over all devices, and says what each of them holds."""

import hashlib
import pathlib
import sys

import jax
import numpy as np

from pcjax.training.checkpoint import Checkpoints
from pcjax.training.parallel import join_processes

join_processes()
checkpoints = Checkpoints(pathlib.Path(sys.argv[1]) / "checkpoints", {}, writable=False)
arrays, _ = checkpoints.arrays(int(sys.argv[2]))
checkpoints.close()
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
for name, array in arrays.items():
    placed = jax.make_array_from_callback(array.shape, everywhere, array.__getitem__)
    for shard in placed.addressable_shards:
        print(
            "shard",
            shard.device.id,
            name,
            hashlib.blake2b(np.asarray(shard.data).tobytes()).hexdigest(),
            flush=True,
        )
