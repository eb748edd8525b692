"""How a student is trained: the state, the step, the devices it is mapped over, the checkpoints, the loop.

functional.py   an NNX module as a pure function of named arrays
objective.py    the weighted sum of losses that a config asks for
state.py        what training changes, one pytree, and the optimiser
step.py         (state, batch) -> (state, metrics) for one device with a named axis
parallel.py     that function over all devices, by pmap or shard_map
checkpoint.py   state, place in the data and manifest, saved and restored
clock.py        how long a run took, with what was before it was stopped
guard.py        which steps were not taken, learnt without waiting for any
records.py      metrics.jsonl, read whatever has become of it
stopping.py     signals that all processes agree on, and a watchdog
loop.py         the straight line through all of it
"""
