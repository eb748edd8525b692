"""How tests that compile much and compute little have XLA compile for CPUs."""

import jax

# JAX 0.10 can still do without the emitters that take half of the time to compile and gain what is not asked for here.
WITHOUT_OPTIMISATIONS = "--xla_backend_optimization_level=0" + (
    " --xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""
)
