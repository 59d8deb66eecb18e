"""The only interface between NNX and plain parameters.

Networks are written as `nnx.Module`s. Everything outside `cxrjax.models` sees a static, hashable
`Net` and a nested dict of float32 arrays with string keys: the format that optax, shardings,
checkpoints and a teacher's EMA need, and that stays readable when NNX changes its state format.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from cxrjax.core.errors import UserError

Params = dict[str, Any]
RUNNING = ("running_mean", "running_var")  # names of batch norm's running statistics


@dataclasses.dataclass(frozen=True)
class Net:
  """A network without its parameters.

  Attributes:
    build: creates the module; called with `rngs` and `options`.
    options: keyword arguments of `build` as sorted pairs, so that equal networks are equal and
      can be static arguments of `jax.jit`. Use `Net.of`.
  """

  build: Callable[..., nnx.Module]
  options: tuple[tuple[str, Any], ...] = ()

  @classmethod
  def of(cls, build: Callable[..., nnx.Module], **options: Any) -> Net:
    return cls(build, tuple(sorted(options.items())))

  def init(self, key: jax.Array) -> Params:
    """Fresh parameters: a nested dict of float32 arrays, equal for equal keys."""
    module = self.build(**dict(self.options), rngs=nnx.Rngs(params=key))
    return _nest(nnx.to_flat_state(nnx.state(module, nnx.Param)))

  def apply(self, params: Params, *args: Any, **kwargs: Any) -> Any:
    """Calls the module with these parameters.

    Raises:
      UserError: `params` lacks a parameter, has one too many, or one of another shape.
    """
    return self.bind(params)(*args, **kwargs)

  def bind(self, params: Params) -> nnx.Module:
    """The module holding these parameters (arrays or tracers)."""
    graphdef, template = _abstract(self)
    flat = flatten_dict(params)
    expected = {tuple(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(template)}
    _check(flat, {path: leaf for path, (_, leaf) in expected.items()})
    state = [(path, leaf.replace(flat[name])) for name, (path, leaf) in expected.items()]
    return nnx.merge(graphdef, nnx.from_flat_state(state))


def running_stats(module: nnx.Module) -> Params:
  """Batch norm's running statistics of a bound network, at their paths in the parameters."""
  flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
  return _nest((path, leaf) for path, leaf in flat if path[-1] in RUNNING)


@functools.lru_cache(maxsize=128)
def _abstract(net: Net) -> tuple[Any, Any]:
  """Structure and shapes, without computing parameters."""
  module = nnx.eval_shape(lambda: net.build(**dict(net.options), rngs=nnx.Rngs(params=0)))
  return nnx.split(module)


def _nest(flat: Iterable[tuple[tuple[Any, ...], Any]]) -> Params:
  """Nested parameters of variables by their paths."""
  return unflatten_dict({tuple(map(str, path)): leaf[...] for path, leaf in flat})


def _check(flat: dict[tuple[str, ...], Any], expected: dict[tuple[str, ...], Any]) -> None:
  missing = [p for p in expected if p not in flat]
  surplus = [p for p in flat if p not in expected]
  if missing or surplus:
    problem = "lack" if missing else "have the unknown"
    name = "/".join((missing or surplus)[0])
    raise UserError(
      f"parameters {problem} {name!r} ({len(missing)} missing, {len(surplus)} unknown); "
      "they belong to another model: check config.model"
    )
  for path, leaf in expected.items():
    if tuple(flat[path].shape) != tuple(leaf.shape):
      raise UserError(
        f"parameter {'/'.join(path)!r} has shape {tuple(flat[path].shape)}, the model's is "
        f"{tuple(leaf.shape)}; check config.model"
      )


def param_count(params: Any) -> int:
  """Number of scalars in a tree of arrays."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
