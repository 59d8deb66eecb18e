"""How much work a compiled program is worth.

On CPUs LLVM translates every program of XLA's, at its highest level by default. Matrix products are
calls to a library all the same, so that a level below costs no speed: for a DINO step of a small
ViT it takes 10 instead of 17 seconds of processor time, and the step is as fast.
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
  """`compiler_options` of `jax.jit`; None for an accelerator, or where JAX or XLA_FLAGS say some.

  Without a mesh, ask for them when a program is about to be made, not on import: this chooses JAX's
  devices.

  Args:
    once: of a program that runs once, or on a handful of images: it takes half the time to compile
      once more, and runs at half the speed.
    mesh: of the devices that the program is for; by default this machine's.
  """
  platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
  said = jax.config.read("jax_disable_most_optimizations") or _LEVEL in os.environ.get(
    "XLA_FLAGS", ""
  )
  if platform != "cpu" or said:
    return None
  return {_LEVEL: 0 if once else 1}


def jit(function: Callable[..., Any], **static: Any) -> Callable[..., Any]:
  """`jax.jit` with `options`, asked for on the first call: for functions of a module.

  Args:
    function: called from outside of other compiled functions.
    **static: of `jax.jit`.
  """

  @functools.cache
  def compiled() -> Callable[..., Any]:
    return jax.jit(function, compiler_options=options(), **static)

  @functools.wraps(function)
  def call(*args: Any, **kwargs: Any) -> Any:
    return compiled()(*args, **kwargs)

  return call
