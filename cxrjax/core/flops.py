"""Counts the matrix-product operations of a function from its jaxpr, without running it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.interpreters import partial_eval

# Of `models.conv`, which on a CPU also multiplies by zeros between groups: not counted.
GROUPED, GROUPED_GRADIENT = "_grouped_conv", "_grouped_conv_gradient"
# Primitives that call kernels whose operations the jaxpr does not show.
OPAQUE = ("pallas_call", "ffi_call", "custom_partitioning", "dot_product_attention")


def count(function: Callable[..., Any], *args: Any) -> float:
  """Floating-point operations of matrix products and convolutions, two per multiply-add.

  Everything else (elementwise operations, sums, normalization) is left out, as in the papers'
  tables, and so is dead code, which the compiler drops. Of the branches of a conditional the most
  expensive counts; the body of a scan counts as often as it runs.

  Args:
    function: traceable by JAX; static values bound beforehand.
    *args: pytrees of arrays or of `jax.ShapeDtypeStruct`; no value is read and nothing is computed.

  Raises:
    ValueError: a product inside a loop of unknown length, or a fused kernel; count such a function
      where JAX runs on the CPU, which uses none.
  """
  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return _count(used)


def _count(jaxpr: Any) -> float:
  return sum((_count_equation(equation) for equation in jaxpr.eqns), 0.0)


def _count_equation(equation: Any) -> float:
  name, parameters = equation.primitive.name, equation.params
  if name == "dot_general":
    return _dot(equation)
  if name == "conv_general_dilated":
    return _convolution(equation)
  if parameters.get("name") == GROUPED:
    kernel, outputs = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    return 2.0 * math.prod(outputs) * math.prod(kernel[:-1])
  if parameters.get("name") == GROUPED_GRADIENT:
    _, kernel, outputs = (variable.aval.shape for variable in equation.invars)
    return 4.0 * math.prod(outputs) * math.prod(kernel[:-1])
  if name.startswith(OPAQUE):
    raise ValueError(f"{name} hides its operations; count where JAX runs on the CPU")
  if name == "cond":
    return max(_count(branch.jaxpr) for branch in parameters["branches"])
  called = sum((_count(jaxpr) for jaxpr in _called_jaxprs(parameters)), 0.0)
  if name == "scan":
    return called * parameters["length"]
  if name == "while" and called:
    raise ValueError("a matrix product is in a while loop of unknown length")
  return called


def _called_jaxprs(parameters: dict[str, Any]) -> Iterator[Any]:
  """The jaxprs that an operation calls."""
  for value in parameters.values():
    for item in value if isinstance(value, list | tuple) else [value]:
      item = getattr(item, "jaxpr", item)  # of a ClosedJaxpr
      if hasattr(item, "eqns"):
        yield item


def _dot(equation: Any) -> float:
  (contracted, _), _ = equation.params["dimension_numbers"]
  left = equation.invars[0].aval.shape
  result = equation.outvars[0].aval.shape
  return 2.0 * math.prod(result) * math.prod(left[i] for i in contracted)


def _convolution(equation: Any) -> float:
  """Operations of a convolution, without products with the zeros of dilated inputs (gradients)."""
  kernel = equation.invars[1].aval.shape
  outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
  spread = math.prod(equation.params["lhs_dilation"])
  # Besides outputs, the kernel's axes are inputs per group, height and width.
  products = math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / outputs
  return 2.0 * products / spread
