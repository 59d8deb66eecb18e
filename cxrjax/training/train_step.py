"""The training step: views, loss, gradient, optimiser and moving averages as one jitted program."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key

from cxrjax.core import compile_effort
from cxrjax.core.errors import UserError
from cxrjax.methods.base import with_params
from cxrjax.training import sharding
from cxrjax.training.optimizer import Optimizer

State = dict[str, Any]  # step i32[], params, method_state, opt


@dataclasses.dataclass(frozen=True)
class TrainStep:
  """The training step of a method, with what is constant over a run.

  Attributes:
    method: see `cxrjax.methods.base.Method`.
    recipe: `recipe(key, images u8[b h w 1], index=i32[b]) -> views`; lung masks in the batch
      are passed as `masks=u8[b h w 1]`.
    optimizer: see `cxrjax.training.optimizer.Optimizer`.
    fetch: `fetch(data, batch) -> batch` with `image` and `labels`; the loader's.
    mesh: devices.
    seed: of the run.
    accumulate: microbatches per update, of `batch_size / accumulate` images each.
    block: maximum number of steps per dispatch.
    rules: parameter shardings, see `cxrjax.training.sharding.param_specs`.
    start: initial encoder parameters; None initializes them at random. Copies that the method makes
      of the encoder (a teacher) start from them as well.
  """

  method: Any
  recipe: Callable[..., dict[str, Array]]
  optimizer: Optimizer
  fetch: Callable[[Any, Mapping[str, Array]], dict[str, Array]]
  mesh: Mesh
  seed: int
  accumulate: int = 1
  block: int = 1
  rules: tuple[tuple[str, Any], ...] = ((".*", "fsdp"),)
  start: Any = None

  def batch_spec(self, data: Any, batch: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the input of the method's loss, before microbatching."""
    return jax.eval_shape(lambda d, b: self.views(self.fetch(d, b), jax.random.key(0)), data, batch)

  def _init_state(self, spec: Mapping[str, jax.ShapeDtypeStruct], start: Any) -> State:
    key = jax.random.fold_in(jax.random.key(self.seed), 0)
    method = self.method
    if start is not None:
      method = dataclasses.replace(method, encoder=with_params(method.encoder, start))
    params, method_state = method.init(key, spec)
    opt = self.optimizer.init(params)
    return {
      "step": jnp.zeros((), jnp.int32),
      "params": params,
      "method_state": method_state,
      "opt": opt,
    }

  def abstract(self, spec: Mapping[str, jax.ShapeDtypeStruct]) -> State:
    """Shapes, types and shardings of the state.

    Raises:
      UserError: an optimiser rule matches no parameter.
    """
    shapes = jax.eval_shape(lambda start: self._init_state(spec, start), self.start)
    self.optimizer.check(shapes["params"])
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      shapes,
      self.shardings(shapes),
    )

  def init(self, spec: Mapping[str, jax.ShapeDtypeStruct]) -> State:
    """The state before the first step, sharded."""
    shardings = jax.tree.map(lambda x: x.sharding, self.abstract(spec))
    return jax.jit(
      lambda start: self._init_state(spec, start),
      out_shardings=shardings,
      compiler_options=compile_effort.options(once=True, mesh=self.mesh),
    )(self.start)

  def shardings(self, shapes: Any) -> Any:
    """A NamedSharding for every leaf of the state."""
    return sharding.param_specs(shapes, self.mesh, self.rules)

  def step_key(self, step: Int[Array, ""], purpose: int) -> Key[Array, ""]:
    """Random key of a step for the views (purpose 0) or for the method's loss (1)."""
    run = jax.random.fold_in(jax.random.key(self.seed), 1)
    return jax.random.fold_in(jax.random.fold_in(run, step), purpose)

  def views(
    self, batch: Mapping[str, Array], key: Key[Array, ""], position: Int[Array, "b"] | None = None
  ) -> dict[str, Array]:
    """Input of the method's loss, from a batch with `image` and `labels`.

    Args:
      batch: fetched; a microbatch if `position` gives its images' places in the whole batch. Its
        `index`, the images' rows in the data, is passed on.
      key: of the step.
      position: by default 0, 1, ....
    """
    return views_of(self.recipe, batch, key, position)

  def update(self, state: State, data: Any, batch: Mapping[str, Array]) -> tuple[State, Any]:
    """One step: views, loss, gradient, optimiser, `after_update`; traceable."""
    step = state["step"]
    batch = self.fetch(data, batch)
    position = jnp.arange(batch["image"].shape[0], dtype=jnp.int32)
    view_key, loss_key = self.step_key(step, 0), self.step_key(step, 1)
    method_state = self._gathered(state["method_state"], "method_state")

    def loss(params: Any, microbatch: dict[str, Array]) -> Any:
      views = self.views(microbatch, view_key, microbatch["position"])
      return self.method.loss(self._gathered(params, "params"), method_state, views, loss_key, step)

    (value, (new_method_state, metrics)), grads = self._gradient(
      loss, state["params"], {**batch, "position": position}
    )
    params, opt, optimizer_metrics = self.optimizer.update(
      grads, state["opt"], state["params"], step
    )
    new_method_state = self.method.after_update(
      params, self._sharded(new_method_state, "method_state"), step
    )
    schedules = {name: s(step) for name, s in self.method.schedules.items()}
    new_state = {"step": step + 1, "params": params, "method_state": new_method_state, "opt": opt}
    return new_state, {"loss": value, **metrics, **optimizer_metrics, **schedules}

  def _gathered(self, tree: Any, name: str) -> Any:
    """The part of the state called `name`, whole on every device."""
    return sharding.gather({name: tree}, self.mesh, self.rules)[name]  # rules match whole paths

  def _sharded(self, tree: Any, name: str) -> Any:
    """The part of the state called `name`, split over the devices by the rules."""
    return jax.lax.with_sharding_constraint(tree, self.shardings({name: tree})[name])

  def _gradient(self, loss: Callable[..., Any], params: Any, batch: dict[str, Array]) -> Any:
    """Value and gradient of the loss, averaged over the microbatches."""
    gradient = jax.value_and_grad(loss, has_aux=True)
    if self.accumulate == 1:
      return gradient(params, batch)
    size = batch["image"].shape[0]
    if size % self.accumulate:
      raise UserError(
        f"config.accumulate={self.accumulate} does not divide config.batch_size={size}"
      )
    # Strided microbatches, so that no image moves between devices.
    microbatches = jax.tree.map(
      lambda x: jnp.swapaxes(
        x.reshape(size // self.accumulate, self.accumulate, *x.shape[1:]), 0, 1
      ),
      batch,
    )
    microbatches = jax.lax.with_sharding_constraint(
      microbatches, NamedSharding(self.mesh, PartitionSpec(None, *sharding.BATCH))
    )
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], microbatches))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(total: Any, micro: Any) -> tuple[Any, None]:
      value = gradient(params, micro)
      return jax.tree.map(
        lambda t, g: t + g / self.accumulate if jnp.issubdtype(g.dtype, jnp.inexact) else g,
        total,
        value,
      ), None

    return jax.lax.scan(add, zeros, microbatches)[0]

  @functools.cached_property
  def run(self) -> jax.stages.Wrapped:
    """`run(state, data, batches, count) -> state, metrics`, jitted, the state donated.

    `batches` has a leading axis of `block` steps, of which the first `count` are taken (traced,
    so that one compilation serves every count). Metrics have the same leading axis.
    """

    def run(state: State, data: Any, batches: Any, count: Int[Array, ""]) -> tuple[State, Any]:
      if self.block == 1:
        state, metrics = self.update(state, data, jax.tree.map(lambda x: x[0], batches))
        return state, jax.tree.map(lambda m: m[None], metrics)
      update = jax.jit(self.update, inline=True)  # traced once, for the shapes and for the loop
      first = jax.tree.map(lambda x: x[0], batches)
      shapes = jax.eval_shape(update, state, data, first)[1]
      log = jax.tree.map(lambda m: jnp.full((self.block, *m.shape), jnp.nan, m.dtype), shapes)

      def body(i: Int[Array, ""], carry: Any) -> Any:
        state, log = carry
        batch = jax.tree.map(lambda x: x[i], batches)
        state, metrics = update(state, data, batch)
        return state, jax.tree.map(lambda a, m: a.at[i].set(m), log, metrics)

      return jax.lax.fori_loop(0, count, body, (state, log))

    return jax.jit(run, donate_argnums=0, compiler_options=compile_effort.options(mesh=self.mesh))


def views_of(
  recipe: Callable[..., dict[str, Array]],
  batch: Mapping[str, Array],
  key: Key[Array, ""],
  position: Int[Array, "b"] | None = None,
) -> dict[str, Array]:
  """See `TrainStep.views`."""
  if position is None:
    position = jnp.arange(batch["image"].shape[0], dtype=jnp.int32)
  masks = {"masks": batch["mask"]} if "mask" in batch else {}
  views = recipe(key, batch["image"], index=position, **masks)
  index = {"index": batch["index"]} if "index" in batch else {}
  # An image has no lung mask if its own mask is empty; a crop's may be empty for other reasons.
  has_mask = {"has_mask": (batch["mask"] > 0).any((1, 2, 3))} if masks else {}
  return {**views, **index, **has_mask, "labels": batch["labels"], "position": position}
