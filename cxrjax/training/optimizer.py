"""The optimiser: an `optax.chain` of clipping, weight decay, direction and learning rates."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from cxrjax.config import instantiate
from cxrjax.core import durations as clocks
from cxrjax.core.errors import UserError

CLIP_UNITS = ("tensor", "module", "global")


def path_names(tree: Any) -> Any:
  """The tree with each leaf replaced by its path, `"encoder/blocks/0/attn/qkv/kernel"`."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), tree
  )


def clip_by_norm(limit: float, per: str) -> optax.GradientTransformation:
  """Scales gradients down to an L2 norm of at most `limit`, one norm `per` unit of `CLIP_UNITS`."""
  if per == "global":
    return optax.clip_by_global_norm(limit)

  def clip(grads: Any) -> Any:
    scale = jnp.minimum(1.0, limit / (optax.tree.norm(grads) + 1e-6))
    return jax.tree.map(lambda g: g * scale, grads)

  def clip_each(updates: Any, params: Any = None) -> Any:
    is_unit = (lambda x: x is not updates) if per == "module" else None
    return jax.tree.map(clip, updates, is_leaf=is_unit)

  return optax.stateless(clip_each)


def partition(
  params: Any, setting_of: Callable[[str], Any], transform_of: Callable[[Any], Any]
) -> optax.GradientTransformationExtraArgs:
  """Partitions the parameters by a setting, and transforms the gradients of each group by it.

  Args:
    params: the parameters.
    setting_of: sortable setting of the parameter at a path, e.g. a step from which it learns.
    transform_of: the optax transformation for a setting.
  """
  paths = path_names(params)
  settings = sorted({setting_of(path) for path in jax.tree.leaves(paths)})
  return optax.partition(
    {str(i): transform_of(setting) for i, setting in enumerate(settings)},
    jax.tree.map(lambda path: str(settings.index(setting_of(path))), paths),
  )


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """`p <- p - lr m (direction(g) + wd p)` with decoupled weight decay (AdamW by default).

  With `coupled_decay` it is `p <- p - lr m direction(g + wd p)`, which is
  what momentum SGD (`optax.trace`) and LARS (`cxrjax.training.lars`) call weight decay.

  Attributes:
    clock: length of the run.
    name: an optax transformation that turns gradients into directions; its other arguments are
      `options`, e.g. `{"b1": 0.9, "b2": 0.95}`.
    lr: schedule for a batch of `lr_batch` images; only `start` is scaled, by
      `batch_size / lr_batch` or, with `lr_rule="sqrt"`, its root, unless `lr_batch` is 0.
    weight_decay: schedule; biases and one-dimensional parameters are exempt unless
      `decay_vectors`.
    coupled_decay: whether weight decay is part of the gradient, after clipping.
    decay_vectors: whether biases and one-dimensional parameters decay as well (MoCo, SimSiam).
    clip: largest L2 norm of a gradient; 0 for no clipping.
    clip_per: what has one norm: every "tensor" (DINO), every "module", i.e. the whole encoder or
      one head (DINOv2), or "global", all parameters together (`optax.clip_by_global_norm`).
    freeze: `(regex, duration)` pairs: parameters with a matching path, and their moments and step
      count, stay unchanged for that long (DINO).
    hold: the same, but only the learning rate is 0: moments and step count advance (DINOv2).
    lr_scale: `(regex, factor)` pairs; the first match multiplies the learning rate, 0 freezes.
    lr_constant: regexes; parameters with a matching path keep the initial learning rate throughout,
      without warm-up (SimSiam's predictor).
    layer_decay: factor of the learning rate for each layer above a parameter of the encoder (Clark
      et al. 2020, arXiv 2003.10555; Bao et al. 2021, arXiv 2106.08254); 1 treats all layers alike.
    layer_names: the encoder's layers from the input up, see `cxrjax.models.vit.Model.layer_names`.
  """

  clock: clocks.Clock
  name: str = "optax.scale_by_adam"
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  lr: Any = dataclasses.field(
    default_factory=lambda: {"start": 5e-4, "end": 1e-6, "warmup": "10 %"}
  )
  lr_batch: int = 256
  lr_rule: str = "linear"
  weight_decay: Any = dataclasses.field(default_factory=lambda: {"start": 0.04, "end": 0.4})
  coupled_decay: bool = False
  decay_vectors: bool = False
  clip: float = 3.0
  clip_per: str = "tensor"
  freeze: Any = ()  # these four are validated below, with errors that name the option
  hold: Any = ()
  lr_scale: Any = ()
  lr_constant: Any = ()
  layer_decay: float = 1.0
  layer_names: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    if not 0 < self.layer_decay <= 1:
      raise UserError(f"config.optimizer.layer_decay={self.layer_decay} must be above 0, at most 1")
    for option, valid in (("lr_rule", ("linear", "sqrt")), ("clip_per", CLIP_UNITS)):
      if getattr(self, option) not in valid:
        raise UserError(
          f"config.optimizer.{option}={getattr(self, option)!r} is unknown; valid: "
          f"{', '.join(valid)}"
        )
    if self.clip < 0:
      raise UserError(f"config.optimizer.clip={self.clip} must be 0 (off) or above")
    for option in ("lr", "weight_decay"):
      setting = getattr(self, option)
      for value in setting.values() if isinstance(setting, Mapping) else [setting]:
        if isinstance(value, int | float) and not 0 <= value < math.inf:
          raise UserError(f"config.optimizer.{option} has {value}, which must be 0 or above")
    _ = self._rules, self.schedules, self._direction
    for regex, scale in self.lr_scale:
      is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
      if not is_number or not 0 <= scale < math.inf:
        raise UserError(
          f"config.optimizer.lr_scale has {scale!r} for {regex!r}; give a number "
          "that is 0 (frozen) or above"
        )
    for option in ("freeze", "hold"):
      for _, time in getattr(self, option):
        self.clock.steps(time, f"config.optimizer.{option}")

  @functools.cached_property
  def _rules(self) -> dict[str, list[str]]:
    """The regular expressions of every option that takes some."""
    rules: dict[str, list[Any]] = {}
    for option in ("lr_constant", "freeze", "hold", "lr_scale"):
      setting, has_values = getattr(self, option), option != "lr_constant"
      if not isinstance(setting, tuple | list) or any(
        has_values and not (isinstance(rule, tuple | list) and len(rule) == 2) for rule in setting
      ):
        form = '(("regex", value), ...)' if has_values else '("regex", ...)'
        raise UserError(f"config.optimizer.{option}={setting!r} must be like {form}")
      rules[option] = [rule[0] if has_values else rule for rule in setting]
      for regex in rules[option]:
        instantiate.check_regex(regex, f"config.optimizer.{option}")
    return rules

  @functools.cached_property
  def _lr(self) -> dict[str, Any]:
    """The learning-rate schedule, its start scaled by the batch size."""
    lr = dict(self.lr) if isinstance(self.lr, Mapping) else {"start": self.lr}
    if self.lr_batch and "start" in lr:
      ratio = self.clock.batch_size / self.lr_batch
      lr["start"] *= math.sqrt(ratio) if self.lr_rule == "sqrt" else ratio
      # for a constant the end then follows the scaled start
    return lr

  @functools.cached_property
  def schedules(self) -> dict[str, clocks.Schedule]:
    key = "config.optimizer"
    return {
      "lr": clocks.from_config(self._lr, self.clock, f"{key}.lr"),
      "weight_decay": clocks.from_config(self.weight_decay, self.clock, f"{key}.weight_decay"),
    }

  @functools.cached_property
  def _direction(self) -> optax.GradientTransformation:
    factory = instantiate.locate(self.name, "transform", "config.optimizer.name")
    instantiate.check_keywords(factory, dict(self.options), "config.optimizer.options")
    return factory(**self.options)

  def _first_active_step(self, path: str, *options: str) -> int:
    """The first step at which none of these options holds the parameter at `path` back."""
    times = [
      self.clock.steps(time, f"config.optimizer.{option}")
      for option in options
      for regex, time in getattr(self, option)
      if re.search(regex, path)
    ]
    return max(times, default=0)

  def _lr_factor(self, path: str) -> float:
    """Learning-rate factor of the parameter at `path`."""
    scale = next((s for regex, s in self.lr_scale if re.search(regex, path)), 1.0)
    encoder_path = path.removeprefix("encoder/")
    if self.layer_decay == 1 or encoder_path == path:
      return scale
    layers = self.layer_names
    layers_above = (
      len(layers) - i for i, regex in enumerate(layers) if re.match(regex, encoder_path)
    )
    return scale * self.layer_decay ** next(layers_above, 0)

  def _scale_by_learning_rate(
    self, setting: tuple[float, bool, int]
  ) -> optax.GradientTransformation:
    """Scaling by the learning rate of parameters with this factor, constancy and first step."""
    factor, is_constant, first_step = setting

    def rate(step: clocks.Step) -> Float[Array, ""] | float:
      lr = self._lr["start"] if is_constant else self.schedules["lr"](step)
      return jnp.where(step >= first_step, lr * factor, 0.0) if first_step else lr * factor

    return optax.scale_by_learning_rate(rate)

  def transform(self, params: Any) -> optax.GradientTransformationExtraArgs:
    """The whole optimiser as an optax transformation of the gradients of `params`."""
    clipping = [clip_by_norm(self.clip, self.clip_per)] if self.clip else []
    decay = optax.add_decayed_weights(
      self.schedules["weight_decay"],
      mask=lambda tree: jax.tree.map(lambda p: p.ndim > 1 or self.decay_vectors, tree),
    )

    def frozen_until(step: int) -> optax.GradientTransformation:
      if step == 0:
        return self._direction
      return optax.transforms.conditionally_mask(self._direction, lambda count: count >= step)

    direction = partition(
      params, lambda path: self._first_active_step(path, "freeze"), frozen_until
    )
    learning_rates = partition(
      params,
      lambda path: (
        self._lr_factor(path),
        any(re.search(regex, path) for regex in self.lr_constant),
        self._first_active_step(path, "freeze", "hold"),
      ),
      self._scale_by_learning_rate,
    )
    decay_and_direction = [decay, direction] if self.coupled_decay else [direction, decay]
    return optax.chain(*clipping, *decay_and_direction, learning_rates)

  def check(self, params: Any) -> None:
    """Raises a UserError for a rule that matches no parameter."""
    paths = jax.tree.leaves(path_names(params))
    for option, rules in self._rules.items():
      for regex in rules:
        if not any(re.search(regex, path) for path in paths):
          raise UserError(
            f"config.optimizer.{option}: {regex!r} matches no parameter; they are named like "
            f"{paths[0]!r}"
          )

  def init(self, params: Any) -> Any:
    return self.transform(params).init(params)

  def update(
    self, grads: Any, opt_state: Any, params: Any, step: Int[Array, ""]
  ) -> tuple[Any, Any, dict[str, Float[Array, ""]]]:
    """Performs one update; returns new parameters, new optimiser state and metrics."""
    updates, opt_state = self.transform(params).update(grads, opt_state, params)
    schedules = {name: schedule(step) for name, schedule in self.schedules.items()}
    metrics = {"grad_norm": optax.tree.norm(grads), **schedules}
    return optax.apply_updates(params, updates), opt_state, metrics
