"""Shared parts of the configs of PIRL's two pretext tasks: options, presets, the whole config.

Sources of the canonical values: Misra and van der Maaten 2019 (arXiv 1912.01991) and the authors'
code.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from cxrjax.config import recipe

DEMO: dict[str, Any] = {
  "global_scale": (0.4, 1.0),
  "jitter": 0.5,  # of brightness and contrast
  "blur": 2.8,  # largest sigma, in pixels of a 224 px crop
  "blur_prob": 0.5,
  "solarize": 0.0,  # probability
  "dim": 64,
  "batch_norm": True,  # of the embeddings
  "temperature": 0.07,
  "negatives": 32000,  # at most; fewer where there are fewer other images
  "momentum": 0.5,  # of the memory bank
  "pretext_weight": 0.5,
  "lr": 0.004,
}
SMALL: dict[str, Any] = {
  "duration": "40 epochs",
  "eval_every": "5 epochs",
  "global_scale": (0.2, 1.0),
  "jitter": 0.4,
  "blur_prob": 0.0,
  "dim": 128,
}
PAPER: dict[str, Any] = {
  "model": "resnet50",
  "global_scale": (0.08, 1.0),
  "jitter": 0.4,
  "blur_prob": 0.0,
  "dim": 128,
  "batch_norm": False,
  "optimizer": "sgd",
  "duration": "800 epochs",
  "warmup": "0 epochs",
  "lr": 0.03,
  "lr_end": 3e-5,
  "weight_decay": 1e-4,
  "weight_decay_end": 1e-4,
}
TINY: dict[str, Any] = {"dim": 16}
PUZZLE: dict[str, Any] = {
  "local_scale": (0.6, 1.0),
  "local_size": 0,  # pixels per side of a puzzle patch; 0: from `patch_pixels`
}


def config(arg: str, task: str) -> ConfigDict:
  """Builds the config of `configs/pirl_TASK.py:arg`.

  Args:
    arg: the argument after the colon.
    task: "jigsaw" or "rotation".
  """
  demo = {**DEMO, **(PUZZLE if task == "jigsaw" else {})}
  o = recipe.parse(arg, demo, small=SMALL, paper=PAPER, tiny=TINY)
  full_config = recipe.base(o)
  full_config.views = views(o, task)
  full_config.method = {
    "name": "cxrjax.methods.pirl",
    "task": task,
    "dim": o.dim,
    "batch_norm": o.batch_norm,
    "temperature": o.temperature,
    "negatives": o.negatives,
    "momentum": o.momentum,
    "pretext_weight": o.pretext_weight,
  }
  return full_config


def patch_pixels(image_size: int, patch_size: int) -> int:
  """Side of a puzzle patch: 64 pixels for an image view of 224, rounded to whole ViT patches.

  It spans at least two ViT patches. A puzzle patch shows 64/255 of a crop's side whatever its
  resolution: one of 16 pixels beside an image view of 32 shows what one of 9 would, enlarged.
  """
  return patch_size * max(2, round(64 / 224 * image_size / patch_size))


def views(o: ConfigDict, task: str) -> dict[str, Any]:
  """`config.views` of a pretext task."""
  puzzle = (
    {
      "name": "cxrjax.views.pretext.Jigsaw",
      "local_scale": o.local_scale,
      "local_share": 64 / 255,
      "local_size": o.local_size or patch_pixels(o.image_size, o.patch_size),
    }
    if task == "jigsaw"
    else {"name": "cxrjax.views.pretext.Rotation"}
  )
  return {
    **puzzle,
    **recipe.pixels(o, "global_size"),
    "global_scale": o.global_scale,
    "ratio": (3 / 4, 4 / 3),
    "flip": 0.5,
    "brightness": o.jitter,
    "contrast": o.jitter,
    "jitter_prob": 1.0,
    "blur_prob": o.blur_prob,
    "blur_sigma": (0.1, o.blur * o.image_size / 224),
    "solarize_prob": o.solarize,
    "solarize_threshold": 0.5,
    "rotate": 0.0,
  }
