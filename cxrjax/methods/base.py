"""What a method is, and the pieces that several methods share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from cxrjax.core.clock import Schedule

Params = Any  # a nested dict of arrays
Batch = Mapping[str, Array]
Metrics = dict[str, Float[Array, ""]]


@runtime_checkable
class Method(Protocol):
  """A frozen dataclass of options; all state is in `params` (trained) and `extra` (the rest).

  The factory gets `encoder` and `clock` besides the options in the config. `batch` holds the
  recipe's views (`f32[views b h w 1]` each), `labels` `f32[b k]`, and `position` `i32[b]`: where
  each image stands in the global batch, which random numbers must be derived from.

  Every mean over the batch in `loss` is a mean over the *global* batch: arrays are global, `jit`
  does the communication. With gradient accumulation `loss` sees a microbatch, always with the
  same `extra`; the float leaves of the returned `extra` are averaged over microbatches.
  """

  schedules: Mapping[str, Schedule]  # by name, for the report

  def init(self, key: Key[Array, ""], batch_spec: Mapping[str, jax.ShapeDtypeStruct]
           ) -> tuple[Params, Params]: ...

  def loss(self, params: Params, extra: Params, batch: Batch, key: Key[Array, ""],
           step: Int[Array, ""]) -> tuple[Float[Array, ""], tuple[Params, Metrics]]: ...

  def after_update(self, params: Params, extra: Params, step: Int[Array, ""]) -> Params: ...

  def encoder_params(self, params: Params, extra: Params) -> Params: ...

  def flops(self, batch_spec: Mapping[str, jax.ShapeDtypeStruct]) -> float:
    """Of one image in one training step, counted as 2 per multiply-add."""
    ...

  def diagnose(self, metrics: Mapping[str, float]) -> str | None:
    """What is wrong and what to change, when (averaged) metrics show a collapse; else None."""
    ...


def ema(old: Params, new: Params, momentum: Float[Array, ""]) -> Params:
  """`m old + (1 - m) new`, leaf by leaf, in float32."""
  return jax.tree.map(lambda o, n: o + (1 - momentum) * (n - o), old, new)


def image_keys(key: Key[Array, ""], position: Int[Array, "b"], views: int) -> Key[Array, "n"]:
  """One key for every view of every image, `[views * b]`, the same however the batch is cut."""
  def view(v: Int[Array, ""]) -> Key[Array, "b"]:
    view_key = jax.random.fold_in(key, v)
    return jax.vmap(lambda i: jax.random.fold_in(view_key, i))(position)
  return jax.vmap(view)(jnp.arange(views)).reshape(-1)

