"""What pcjax costs, measured beside its peers in one run."""

import os

# Of a GPU's memory JAX would take most at once, and leave none to peers in PyTorch or in another interpreter.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
