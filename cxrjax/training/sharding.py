"""The device mesh, and rules that map parameter paths to shardings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cxrjax.config.instantiate import check_regex
from cxrjax.core.errors import UserError
from cxrjax.training.optimizer import path_names

AXES = ("data", "fsdp")
BATCH = PartitionSpec(AXES)
TYPES = (AxisType.Auto, AxisType.Auto)  # the compiler decides where no constraint does


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A `data x fsdp` mesh of all devices.

  The batch is split over both axes, parameters over `fsdp` where a rule says so.

  Raises:
    UserError: `fsdp` does not divide the number of devices.
  """
  devices = list(devices if devices is not None else jax.devices())
  if fsdp < 1 or len(devices) % fsdp:
    valid = [f for f in range(1, len(devices) + 1) if len(devices) % f == 0]
    raise UserError(
      f"config.mesh.fsdp={fsdp} does not divide {len(devices)} devices; valid: {valid}"
    )
  return Mesh(np.asarray(devices).reshape(-1, fsdp), AXES, axis_types=TYPES)


def check_rules(rules: Any) -> tuple[tuple[str, Any], ...]:
  """Validates `config.mesh.rules`: pairs of a regular expression and a placement.

  Raises:
    UserError: the rules are malformed.
  """
  if not isinstance(rules, tuple) or not all(
    isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[1], str | tuple)
    for rule in rules
  ):
    raise UserError(f'config.mesh.rules={rules!r} must be like (("regex", "fsdp"), ...)')
  for regex, _ in rules:
    check_regex(regex, "config.mesh.rules")
  return rules


def param_specs(
  tree: Any, mesh: Mesh, rules: Sequence[tuple[str, Any]] = ((".*", "fsdp"),), min_size: int = 2**16
) -> Any:
  """A NamedSharding for every leaf, by the first rule whose regex matches its path.

  Args:
    tree: arrays or ShapeDtypeStructs.
    mesh: from `make_mesh`.
    rules: `(regex, placement)`; `"replicate"`, `"fsdp"` (split the first dimension that the
      `fsdp` axis divides, a kernel's inputs, so that its columns can be cut apart; replicate
      leaves of under `min_size` elements), or a tuple with an axis name or None per dimension.
    min_size: in elements; smaller tensors cost more to gather than to keep.

  Raises:
    UserError: a placement does not fit its tensor.
  """
  width = mesh.shape["fsdp"]

  def place(path: str, leaf: Any) -> NamedSharding:
    shape = leaf.shape
    placement = next((p for regex, p in rules if re.search(regex, path)), "replicate")
    if placement == "replicate":
      return NamedSharding(mesh, PartitionSpec())
    if placement == "fsdp":
      fits = [d for d in range(len(shape)) if shape[d] % width == 0]
      if width == 1 or int(np.prod(shape)) < min_size or not fits:
        return NamedSharding(mesh, PartitionSpec())
      return NamedSharding(mesh, PartitionSpec(*(None,) * fits[0], "fsdp"))
    if isinstance(placement, str) or len(placement) > len(shape):
      raise UserError(
        f"config.mesh.rules: {placement!r} does not fit {path} of shape {shape}; give 'replicate', "
        "'fsdp' or an axis name (or None) per dimension"
      )
    return NamedSharding(mesh, PartitionSpec(*placement))

  return jax.tree.map(place, path_names(tree), tree)


def gather(tree: Any, mesh: Mesh, rules: Sequence[tuple[str, Any]]) -> Any:
  """Gathers the tree onto every device for a step's products; gradients return to the shards.

  Otherwise the compiler may split the products along the parameters' shards and then communicate
  activations, which are larger.

  Args:
    tree: traced arrays, placed as by `param_specs`.
    mesh: see `param_specs`.
    rules: see `param_specs`.
  """
  replicated = NamedSharding(mesh, PartitionSpec())

  def gather(x: jax.Array, shards: NamedSharding) -> jax.Array:
    if shards.is_fully_replicated:
      return x

    @jax.custom_vjp
    def replicate(x: jax.Array) -> jax.Array:
      return jax.lax.with_sharding_constraint(x, replicated)

    replicate.defvjp(
      lambda x: (replicate(x), None), lambda _, dx: (jax.lax.with_sharding_constraint(dx, shards),)
    )
    return replicate(x)

  return jax.tree.map(gather, tree, param_specs(tree, mesh, rules))


def to_host(tree: Any) -> Any:
  """The whole tree as NumPy arrays in every process, wherever its shards are."""

  def fetch(x: Any) -> np.ndarray:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      assert isinstance(x.sharding, NamedSharding)  # as set by `param_specs` and the loader
      x = jax.jit(lambda y: y, out_shardings=NamedSharding(x.sharding.mesh, PartitionSpec()))(x)
      return np.asarray(x.addressable_data(0))
    return np.asarray(x)

  return jax.tree.map(fetch, tree)
