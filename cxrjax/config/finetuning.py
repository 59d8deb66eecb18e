"""Shared parts of the configs for learning from labels: options, presets, all but the method.

Layer decay, drop path, label smoothing, mixup and cosine schedule follow MAE's fine-tuning (He et
al. 2021, arXiv 2111.06377, table 9), in milder form for datasets of a few thousand images.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from cxrjax.config import recipe
from cxrjax.core.errors import UserError

DEMO: dict[str, Any] = {
  "split": "train[15%:]",
  "val": "train[:15%]",  # selects checkpoint, temperature and thresholds
  "test": "test",
  "site": "",  # another source to test on, with all of its images
  "split_seed": 0,  # draws subsets and folds
  "fold": "",  # of a cross-validation, e.g. `2 of 5`, instead of the source's splits
  "score": "auroc",  # validation metric: auroc, balanced_accuracy, ...
  "threshold_for": "auto",  # most likely class; or balanced_accuracy, f1, accuracy on `val`
  "batch_size": 32,
  "duration": "600 steps",
  "eval_every": "100 steps",
  "warmup": "10 %",
  "lr": 0.008,  # per 256 images
  "lr_end": 1e-6,
  "weight_decay": 0.05,
  "weight_decay_end": 0.05,
  "layer_decay": 0.75,  # only with `init`; from scratch all layers share one rate
  "drop_path": 0.1,
  "pool": "",  # cls or mean; "": as the network was trained
  "frozen": "0 steps",  # how long only the head learns; "100 %": a linear probe
  "smoothing": 0.1,
  "class_weights": "none",  # or balanced
  "mixup": 0.0,
  "dropout": 0.0,
  "momentum": 0.0,  # of a moving average of the network, which is then evaluated
  "test_scales": "1",  # center crops by share of a side, 1+0.9: predictions are averaged
  "test_flip": False,  # also average over the image and its mirror image
  "scale_least": 0.5,  # smallest share of an image in a crop
  "scale_most": 1.0,  # largest; above 1 the image is smaller than the crop
  "flip": 0.5,
  "rotate": 10.0,  # largest angle, degrees
  "jitter": 0.3,  # of brightness and contrast
  "gamma": 0.0,  # of exposure: gray levels to the power e^-gamma to e^gamma
  "blur_prob": 0.0,
  "blur": 1.0,  # largest sigma, in pixels
  "eval_data": "none",
}
SMALL: dict[str, Any] = {
  "lr": 0.008,
  "duration": "1500 steps",
  "eval_every": "150 steps",
  "batch_size": 64,
}
PAPER: dict[str, Any] = {
  "batch_size": 256,
  "lr": 1e-3,
  "duration": "75 epochs",
  "warmup": "5 epochs",
  "lr_end": 1e-5,
  "weight_decay_end": 0.05,
  "layer_decay": 0.55,
  "drop_path": 0.2,
  "eval_every": "5 epochs",
}
# From scratch, for real radiographs at 128 px: strong augmentation, which matters most on films of
# another time or machine than the training data.
STRONG: dict[str, Any] = {
  "store": 144,
  "image_size": 128,
  "model": "resnet18",
  "encoder_width": 24,
  "patch_size": 16,
  "standardize": True,
  "batch_size": 64,
  "duration": "1400 steps",
  "eval_every": "200 steps",
  "lr": 0.008,
  "weight_decay": 0.05,
  "weight_decay_end": 0.05,
  "drop_path": 0.0,
  "scale_least": 0.08,
  "jitter": 0.4,
  "gamma": 0.4,
  "blur_prob": 0.2,
  "rotate": 15.0,
  "mixup": 0.2,
  "momentum": 0.999,
  "test_scales": "1+0.9+0.8",
  "test_flip": True,
}
TINY: dict[str, Any] = {"batch_size": 8}
# For methods that also learn from unlabelled images: as many labelled images per step, and steps of
# the same size, as without the unlabelled ones.
UNLABELLED: dict[str, Any] = {
  "labelled": "16 per class",  # part of `subset` whose labels are known; or "10 %"
  "labelled_share": 0.5,  # share of every batch; 0 draws all images equally often
  "batch_size": 64,
  "lr": 0.004,
}


def base(o: ConfigDict, name: str, **method: Any) -> ConfigDict:
  """Builds the complete config.

  Args:
    o: the options, including those of `DEMO`. With `labelled`, the labels of the other images are
      hidden from the method, and `labelled_share` of every batch is labelled.
    name: the method's module in `cxrjax.methods`.
    **method: the method's own options.
  """
  config = recipe.base(o)
  config.data.repeat = True
  config.data.split_seed, config.data.fold = o.split_seed, o.fold
  if "labelled" in o:
    config.data.labelled, config.data.labelled_share = o.labelled, o.labelled_share
  if o.pool:
    config.model.pool = o.pool
  config.views = recipe.one_view(o) | {
    "global_scale": (o.scale_least, o.scale_most),
    "flip": o.flip,
    "rotate": o.rotate,
    "brightness": o.jitter,
    "contrast": o.jitter,
    "jitter_prob": 0.8,
    "gamma": o.gamma,
    "blur_prob": o.blur_prob,
    "blur_sigma": (0.1, o.blur),
  }
  config.method = {
    "name": f"cxrjax.methods.{name}",
    "smoothing": o.smoothing,
    "class_weights": o.class_weights,
    "mixup": o.mixup,
    "dropout": o.dropout,
    "momentum": o.momentum,
    "test_scales": _numbers(o.test_scales, "test_scales"),
    "test_flip": o.test_flip,
    **method,
  }
  config.optimizer.layer_decay = o.layer_decay if o.init else 1.0
  if o.frozen != "0 steps":
    config.optimizer.freeze = (("^encoder/", o.frozen),)
  config.checkpoint.score = o.score
  _set_evaluators(config, o)
  return config


def _set_evaluators(config: ConfigDict, o: ConfigDict) -> None:
  """Sets validation while training, then tests on the source's split and on another site."""
  data = {
    "name": recipe.sources(o),
    **recipe.source_options(o.data, o),
    "train": o.split,
    "val": o.val,
    "test": o.test,
    "subset": o.subset,
    "split_seed": o.split_seed,
    **({"fold": o.fold} if o.fold else {}),
    **({"labelled": o.labelled} if "labelled" in o else {}),
  }
  config.evals.validation = judge(o, config, data, "val", o.eval_every)
  config.evals.test = judge(o, config, data, "test", "chosen")
  if o.fold.endswith("by image"):  # patients may be on both sides
    config.data.shared_patients = "allow"
    for evaluator in config.evals.values():
      evaluator.allow_shared_patients = True
  if o.site:
    site_data = {"name": o.site, **recipe.source_options(o.site, o), "train": "all", "test": "all"}
    config.evals.site = judge(o, config, site_data, "test", "chosen")
    config.evals.site.fitted = data


def _numbers(text: str, option: str) -> tuple[float, ...]:
  """Parses `"1+0.9"` as (1.0, 0.9)."""
  try:
    return tuple(float(part) for part in text.split("+"))
  except ValueError as error:
    raise UserError(
      f"--config=...:{option}={text} is no list of numbers; write it like 1+0.9"
    ) from error


def judge(o: ConfigDict, config: ConfigDict, data: dict, part: str, every: str) -> dict:
  """Config of an evaluator on one split of a source."""
  return {
    "name": "cxrjax.evals.classify",
    "every": every,
    "data": data,
    "part": part,
    "threshold_for": o.threshold_for,
    **recipe.pixels(o),
    **recipe.decoding(config),
  }
