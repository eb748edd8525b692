"""How tests compile: without the compiler's optimisations, into one cache for all processes."""

import pathlib

import jax

# In one part a small program compiles faster. JAX 0.10 can still do without the emitters that
# take half of the time to compile.
WITHOUT_OPTIMISATIONS = (
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
) + (" --xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else "")
# All workers and children share it, and `pytest --cache-clear` empties it. JAX does not write its
# entries atomically: a process that reads half of one compiles anew.
CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "d" / "compiled"
