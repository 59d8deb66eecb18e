"""Optimization level of XLA's programs on CPUs.

On CPUs LLVM compiles every XLA program, at its highest level by default. Matrix products are
library calls anyway, so that a lower level costs no speed: a DINO step of a small ViT compiles in
10 instead of 17 seconds of processor time, and runs as fast.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

_LEVEL = "xla_backend_optimization_level"


def options(once: bool = False, mesh: Mesh | None = None) -> dict[str, Any] | None:
  """`compiler_options` of `jax.jit`; None on accelerators, or where JAX or XLA_FLAGS set a level.

  Without a mesh, call this when a program is about to be compiled, not on import: it initializes
  JAX's devices.

  Args:
    once: for a program that runs once, or on a handful of images: halves the compile time again, at
      half the speed.
    mesh: the devices that the program is for; by default this machine's.
  """
  platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
  is_configured = jax.config.read("jax_disable_most_optimizations") or _LEVEL in os.environ.get(
    "XLA_FLAGS", ""
  )
  if platform != "cpu" or is_configured:
    return None
  return {_LEVEL: 0 if once else 1}


def jit(function: Callable[..., Any], **static: Any) -> Callable[..., Any]:
  """`jax.jit` with `options` that are resolved on the first call: for module-level functions.

  Args:
    function: not called from inside other compiled functions.
    **static: arguments of `jax.jit`.
  """

  @functools.cache
  def compiled() -> Callable[..., Any]:
    return jax.jit(function, compiler_options=options(), **static)

  @functools.wraps(function)
  def call(*args: Any, **kwargs: Any) -> Any:
    return compiled()(*args, **kwargs)

  return call
