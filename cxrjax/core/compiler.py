"""What XLA is told when it compiles a training step."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

# Measured on two AVX-512 cores with a ViT-Ti DINO step (benchmarks/README.md): 512-bit vectors for
# fused loops, and the matrix library for products only: its fused reductions ask for operands
# written out in full (broadcasts, scaled copies) that XLA's own loops never store.
_CPU = {
  "xla_cpu_prefer_vector_width": 512,
  "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
}


@functools.lru_cache(maxsize=1)
def options() -> dict[str, bool | int | str]:
  """`compiler_options` for `jax.jit` on this backend; those this jaxlib does not know are left out.

  Options change the speed and the order of float additions, never what is computed.
  """
  if jax.default_backend() != "cpu":
    return {}
  return {name: value for name, value in _CPU.items() if _known(name, value)}


def _known(name: str, value: bool | int | str) -> bool:
  try:
    jax.jit(lambda x: x + 1, compiler_options={name: value}).lower(jnp.zeros(())).compile()
  except Exception:  # the type of this error is XLA's own and has changed between versions
    return False
  return True
