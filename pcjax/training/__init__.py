"""How a model is trained.

build.py            a model with its initial weights
embedding.py        a frozen model and its outputs for all examples
objective.py        the weighted sum of losses
neighbour_views.py  a neighbour of every example, for the losses that use one
state.py            the changing part of a step, one pytree, and the optimiser
step.py             (state, batch) -> (state, metrics) for one device with a named axis
parallel.py         that function over all devices, by pmap or shard_map
checkpoint.py       the state, saved and restored
metrics_log.py      metrics.jsonl, written and read
tensorboard.py      the same metrics for TensorBoard
stopping.py         signals that all processes agree on, and a watchdog
loop.py             the straight line through all of it
"""
