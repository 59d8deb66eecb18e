"""What the configs of PIRL's two pretext tasks share: options, presets and the whole config.

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
  "negatives": 32000,  # or all other images, where they are fewer
  "momentum": 0.5,  # of the bank
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
  "local_size": 0,  # pixels of a puzzle's patch; 0: as `patch_pixels` says
}


def config(arg: str, task: str) -> ConfigDict:
  """The config of `configs/pirl_TASK.py:arg`.

  Args:
    arg: what stands after the colon.
    task: "jigsaw" or "rotation".
  """
  demo = {**DEMO, **(PUZZLE if task == "jigsaw" else {})}
  o = recipe.parse(arg, demo, small=SMALL, paper=PAPER, tiny=TINY)
  found = recipe.base(o)
  found.views = views(o, task)
  found.method = {
    "name": "cxrjax.methods.pirl",
    "task": task,
    "dim": o.dim,
    "batch_norm": o.batch_norm,
    "temperature": o.temperature,
    "negatives": o.negatives,
    "momentum": o.momentum,
    "pretext_weight": o.pretext_weight,
  }
  return found


def patch_pixels(image_size: int, patch_size: int) -> int:
  """Side of a puzzle's patch: 64 pixels where an image view has 224, in whole patches of a ViT.

  Of those it has two a side at least. A patch shows 64/255 of a crop's side whatever its pixels, so
  that one of 16 beside an image view of 32 shows the same as one of 9 would, at a larger scale.
  """
  return patch_size * max(2, round(64 / 224 * image_size / patch_size))


def views(o: ConfigDict, task: str) -> dict[str, Any]:
  """`config.views` of a task."""
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
