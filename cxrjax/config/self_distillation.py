"""Shared parts of the configs of DINO and its successors: options, presets, the method's core.

Sources of the values: Caron et al. 2021 (arXiv 2104.14294) and the authors' code.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

DEMO: dict[str, Any] = {
  "global_scale": (0.7, 1.0),
  "local_size": 16,
  "local_crops": 2,
  "local_scale": (0.4, 0.8),
  "jitter": 0.5,  # of brightness and contrast
  "jitter_prob": 1.0,
  "blur": 2.8,  # largest sigma, in pixels of a 224 px crop
  "prototypes": 128,
  "hidden": 256,
  "bottleneck": 64,
  "batch_norm": True,
  "momentum": 0.99,  # of the teacher; rises to momentum_end
  "momentum_end": 1.0,
  "center_momentum": 0.8,
  "temp_start": 0.02,  # of the teacher; rises to temp_end over temp_warmup
  "temp_end": 0.02,
  "temp_warmup": "0 epochs",
}
SMALL: dict[str, Any] = {
  "global_scale": (0.4, 1.0),
  "local_size": 32,
  "local_scale": (0.2, 0.5),
  "jitter": 0.4,
  "jitter_prob": 0.8,
  "blur": 2.0,
  "prototypes": 1024,
  "hidden": 512,
  "bottleneck": 128,
  "momentum": 0.996,
  "momentum_end": 1.0,
  "center_momentum": 0.9,
  "temp_start": 0.04,
  "temp_end": 0.04,
}
PAPER: dict[str, Any] = {
  "local_size": 96,
  "jitter": 0.4,
  "jitter_prob": 0.8,
  "blur": 2.0,
  "hidden": 2048,
  "bottleneck": 256,
  "batch_norm": False,
  "momentum": 0.996,
  "momentum_end": 1.0,
  "center_momentum": 0.9,
  "temp_start": 0.04,
  "temp_end": 0.07,
  "temp_warmup": "30 epochs",
}
TINY: dict[str, Any] = {"local_size": 16, "prototypes": 32}


def method(o: ConfigDict, name: str) -> dict[str, Any]:
  """The part of `config.method` for heads, temperatures, center and teacher."""
  return {
    "name": f"cxrjax.methods.{name}",
    "prototypes": o.prototypes,
    "hidden": o.hidden,
    "bottleneck": o.bottleneck,
    "batch_norm": o.batch_norm,
    "norm_last_layer": True,
    "student_temp": 0.1,
    "center_momentum": o.center_momentum,
    "teacher_temp": {
      "kind": "stairs",
      "start": o.temp_start,
      "end": o.temp_end,
      "warmup": o.temp_warmup,
    },
    "momentum": {"start": o.momentum, "end": o.momentum_end},
  }
