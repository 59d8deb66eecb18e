"""Cost of a training step in matrix products, from the jaxpr of its loss; nothing is compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cxrjax.core import flops
from cxrjax.core.target import CPU
from cxrjax.methods.base import Labels
from cxrjax.training import compile_ahead, sharding
from cxrjax.training.build import build_train_step


def forward(
  config: Mapping[str, Any], examples: int, labels: Labels = compile_ahead.LABELS
) -> float:
  """Forward FLOPs per image of a method's loss.

  Everything that the loss runs forward counts: student, teacher, heads, decoder, similarities.

  Args:
    config: of a training run.
    examples: number of training images.
    labels: of the training images.

  Raises:
    ValueError: they cannot be counted, see `cxrjax.core.flops.count`.
  """
  loss, shapes = _abstract_loss(config, examples, labels)
  return flops.count(loss, *shapes) / config["batch_size"]


def training(
  config: Mapping[str, Any], examples: int, labels: Labels = compile_ahead.LABELS
) -> float:
  """FLOPs per image of a method's loss and its gradient; arguments and errors as of `forward`."""
  loss, shapes = _abstract_loss(config, examples, labels)
  return flops.count(jax.value_and_grad(loss, has_aux=True), *shapes) / config["batch_size"]


def _abstract_loss(
  config: Mapping[str, Any], examples: int, labels: Labels
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
  """The loss of a config's method, and the shapes of its arguments."""
  # Target the CPU: fused kernels of accelerators would hide their matrix products. Without `remat`:
  # what the backward pass computes again does not count.
  model = dict(config["model"])
  train_step = build_train_step(
    {**config, "model": model | ({"remat": False} if "remat" in model else {})},
    sharding.make_mesh(),
    examples=examples,
    labels=labels,
    resident=False,
    fetch=lambda data, batch: batch,
    target=CPU,
  )
  batch = train_step.batch_spec({}, compile_ahead.batch_shapes(config, labels))
  params, state = jax.eval_shape(lambda: train_step.method.init(jax.random.key(0), batch))
  key = jax.eval_shape(lambda: jax.random.key(0))
  return train_step.method.loss, (params, state, batch, key, jax.ShapeDtypeStruct((), jnp.int32))
