"""Matrix-product operations of a function, counted in its program without running it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.interpreters import partial_eval

# Of `models.conv`, which on a CPU multiplies by zeros between groups: these do not count.
GROUPED, GROUPED_GRADIENT = "_grouped_conv", "_grouped_conv_gradient"
# What calls a kernel that no program shows the inside of.
OPAQUE = ("pallas_call", "ffi_call", "custom_partitioning", "dot_product_attention")


def count(function: Callable[..., Any], *args: Any) -> float:
  """Floating-point operations of `function`'s matrix products and convolutions, 2 a multiply-add.

  Everything else (element by element, sums, normalisation) is left out, as in the papers' tables,
  and so is what no result depends on, which the compiler drops. Of the branches of a condition the
  costliest counts; a scan's body as often as it runs.

  Args:
    function: traceable by JAX; static values bound beforehand.
    *args: pytrees of arrays or of `jax.ShapeDtypeStruct`; no value is looked at, nothing computed.

  Raises:
    ValueError: a product inside a loop whose length is not known beforehand, or a fused kernel;
      count such a function where JAX runs on the CPU, which uses none.
  """
  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return _count(used)


def _count(jaxpr: Any) -> float:
  return sum((_one(equation) for equation in jaxpr.eqns), 0.0)


def _one(equation: Any) -> float:
  name, parameters = equation.primitive.name, equation.params
  if name == "dot_general":
    return _dot(equation)
  if name == "conv_general_dilated":
    return _convolution(equation)
  if parameters.get("name") == GROUPED:
    kernel, found = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    return 2.0 * math.prod(found) * math.prod(kernel[:-1])
  if parameters.get("name") == GROUPED_GRADIENT:
    _, kernel, found = (variable.aval.shape for variable in equation.invars)
    return 4.0 * math.prod(found) * math.prod(kernel[:-1])
  if name.startswith(OPAQUE):
    raise ValueError(f"{name} hides its operations; count where JAX runs on the CPU")
  if name == "cond":
    return max(_count(branch.jaxpr) for branch in parameters["branches"])
  inside = sum((_count(jaxpr) for jaxpr in _within(parameters)), 0.0)
  if name == "scan":
    return inside * parameters["length"]
  if name == "while" and inside:
    raise ValueError("a matrix product stands in a while loop, whose length is not known")
  return inside


def _within(parameters: dict[str, Any]) -> Iterator[Any]:
  """The programs that an operation calls."""
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
  """Without the products with zeros that a gradient puts between pixels."""
  kernel = equation.invars[1].aval.shape
  outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
  spread = math.prod(equation.params["lhs_dilation"])
  # The kernel's other axes: inputs of one group, height, width.
  products = math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / outputs
  return 2.0 * products / spread
