"""What the configs of PIRL's two pretext tasks share: options, presets and the whole config.

Sources of the canonical values: Misra and van der Maaten 2019 (arXiv 1912.01991) and the authors'
code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from cxrjax.core import experiment

DEMO: dict[str, Any] = {
  "global_scale": (0.4, 1.0),
  "jitter": 0.5,            # of brightness and contrast
  "blur": 2.8,              # largest sigma, in pixels of a 224 px crop
  "blur_prob": 0.5,
  "solarize": 0.0,          # probability
  "dim": 64,
  "batch_norm": True,       # of the embeddings
  "temperature": 0.07,
  "negatives": 32000,       # or all other images, where they are fewer
  "momentum": 0.5,          # of the bank
  "pretext_weight": 0.5,
  "lr": 0.004,
}
SMALL: dict[str, Any] = {
  "global_scale": (0.2, 1.0), "jitter": 0.4, "blur_prob": 0.0, "dim": 128,
}
PAPER: dict[str, Any] = {
  "model": "resnet50", "global_scale": (0.08, 1.0), "jitter": 0.4, "blur_prob": 0.0, "dim": 128,
  "batch_norm": False, "optimizer": "sgd", "duration": "800 epochs", "warmup": "0 epochs",
  "lr": 0.03, "lr_end": 3e-5, "weight_decay": 1e-4, "weight_decay_end": 1e-4,
}
TINY: dict[str, Any] = {"dim": 16}
# A puzzle's crop and patches. Patches show 64/255 of the crop's side and have 64 pixels where an
# image view has 224. A vision transformer's are whole numbers of its own patches, so that small
# ones show the same at a larger scale: 16 pixels.
PUZZLE: dict[str, Any] = {"local_scale": (0.6, 1.0), "local_size": 16}
PUZZLES: dict[str, dict[str, Any]] = {"paper": {"local_size": 64}}


def config(arg: str, task: str) -> ConfigDict:
  """The config of `configs/pirl_TASK.py:arg`.

  Args:
    arg: what stands after the colon.
    task: "jigsaw" or "rotation".
  """
  puzzle = task == "jigsaw"
  presets = {"small": SMALL, "paper": PAPER, "tiny": TINY}
  o = experiment.parse(
    arg, {**DEMO, **(PUZZLE if puzzle else {})},
    **{name: {**values, **(PUZZLES.get(name, {}) if puzzle else {})}
       for name, values in presets.items()})
  found = experiment.base(o)
  found.views = views(o, task)
  found.method = {
    "name": "cxrjax.methods.pirl", "task": task, "dim": o.dim, "batch_norm": o.batch_norm,
    "temperature": o.temperature, "negatives": o.negatives, "momentum": o.momentum,
    "pretext_weight": o.pretext_weight,
  }
  return found


def views(o: Mapping[str, Any], task: str) -> dict[str, Any]:
  """`config.views` of a task."""
  puzzle = {
    "name": "cxrjax.views.pretext.Jigsaw", "local_size": o.local_size,
    "local_scale": o.local_scale, "local_share": 64 / 255,
  } if task == "jigsaw" else {"name": "cxrjax.views.pretext.Rotation"}
  return {
    **puzzle, "global_size": o.image_size, "global_scale": o.global_scale, "ratio": (3 / 4, 4 / 3),
    "flip": 0.5, "brightness": o.jitter, "contrast": o.jitter, "jitter_prob": 1.0,
    "blur_prob": o.blur_prob, "blur_sigma": (0.1, o.blur * o.image_size / 224),
    "solarize_prob": o.solarize, "solarize_threshold": 0.5, "rotate": 0.0, "mean": 0.5, "std": 0.25,
  }
