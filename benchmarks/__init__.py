"""Measure the costs of pcjax beside its peers, in one run."""

import os

# JAX would take most of a GPU's memory, and leave none to peers in PyTorch or another interpreter.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
