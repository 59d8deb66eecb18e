"""Builds an encoder from its config, for the devices that it will run on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cxrjax.config.instantiate import build, locate
from cxrjax.core import flops
from cxrjax.core.target import CPU, Target


def resolve(encoder: Any) -> None:
  """Resolves "auto" in the options `dtype` and `attention` of a frozen encoder from its target.

  Raises:
    UserError: an unknown type or kernel.
  """
  dtype = encoder.target.dtype(encoder.dtype)
  kernel = encoder.target.attention(encoder.attention, dtype)
  object.__setattr__(encoder, "dtype", dtype)
  object.__setattr__(encoder, "attention", kernel)


def build_encoder(spec: Mapping[str, Any], target: Target, key: str = "config.model") -> Any:
  """Builds the network that `spec` names, for a target.

  Args:
    spec: `name` and options, `config.model`.
    target: the devices that it will run on.
    key: config key of the spec, for errors.

  Raises:
    UserError: an unknown name or option.
  """
  factory: Any = locate(spec["name"], "Model", f"{key}.name") if spec.get("name") else None
  extra = {"target": target} if factory and factory.takes_target else {}
  return build(spec, "Model", key, **extra)


def forward_flops(encoder: Any, image_shape: tuple[int, ...]) -> float:
  """Operations of one image's forward pass in matrix products and convolutions.

  Args:
    encoder: the network.
    image_shape: (height, width, ...) in pixels.

  Raises:
    ValueError: they cannot be counted, see `cxrjax.core.flops.count`.
  """
  plain = {"dtype": "float32", "attention": "plain", "target": CPU}  # fused kernels hide products
  if dataclasses.is_dataclass(encoder) and not isinstance(encoder, type):
    fields = {field.name for field in dataclasses.fields(encoder)}
    encoder = dataclasses.replace(encoder, **{k: v for k, v in plain.items() if k in fields})
  params = jax.eval_shape(encoder.init, jax.random.key(0))
  image = jax.ShapeDtypeStruct((1, *image_shape[:2], encoder.channels), jnp.float32)

  return flops.count(lambda params, image: encoder.encode(params, image)[:2], params, image)
