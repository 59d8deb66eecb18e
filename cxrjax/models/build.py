"""Builds an encoder from its config, for the devices that it will run on."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from cxrjax.config.instantiate import build, locate
from cxrjax.core.target import Target


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

  Encoders that choose types or kernels by platform have a field `target`; others are built from
  their options alone.

  Args:
    spec: `name` and options, `config.model`.
    target: the devices that it will run on.
    key: config key of the spec, for errors.

  Raises:
    UserError: an unknown name or option.
  """
  extra = {}
  if spec.get("name"):
    factory = locate(spec["name"], "Model", f"{key}.name")
    if "target" in inspect.signature(factory).parameters:
      extra = {"target": target}
  return build(spec, "Model", key, **extra)
