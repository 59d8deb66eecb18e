"""The recipe that all configs for learning from labels share, and its presets.

Layer decay, drop path, label smoothing, mixup and cosine schedule follow MAE's fine-tuning (He et
al. 2021, arXiv 2111.06377, table 9), in milder form for datasets of a few thousand images.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from cxrjax.config import recipe

_OWN: dict[str, dict[str, Any]] = {
  "demo": {
    "batch_size": 32,
    "duration": "600 steps",
    "eval_every": "100 steps",
    "lr": 0.008,  # per 256 images
    "optimizer.lr.end": 1e-6,
    "weight_decay": 0.05,
    "optimizer.layer_decay": 0.75,
    "model.drop_path": 0.1,
  },
  "small": {"lr": 0.008, "duration": "1500 steps", "eval_every": "150 steps", "batch_size": 64},
  # From scratch, for real radiographs at 128 px: strong augmentation, which matters most on films
  # of another time or machine than the training data.
  "strong": {
    "store": 144,
    "image_size": 128,
    "model": "resnet18",
    "model.width": 24,
    "model.patch_size": 16,
    "model.drop_path": 0.0,
    "batch_size": 64,
    "duration": "1400 steps",
    "eval_every": "200 steps",
    "views.global_scale": (0.08, 1.0),
    "views.brightness": 0.4,
    "views.contrast": 0.4,
    "views.gamma": 0.4,
    "views.blur_prob": 0.2,
    "views.rotate": 15.0,
    "method.mixup": 0.2,
    "method.momentum": 0.999,
    "method.test_scales": (1.0, 0.9, 0.8),
    "method.test_flip": True,
  },
  "linear": {"optimizer.freeze": (("^encoder/", "100 %"),)},  # only the head learns
}
PRESETS = {
  name: recipe.PRESETS.get(name, {}) | _OWN.get(name, {})
  for name in (*recipe.PRESETS, "strong", "linear")
}
# Rates that fall towards the input suit layers that know something already.
SCRATCH = {"optimizer.layer_decay": 1.0}
# For methods that also learn from unlabelled images: as many labelled images per step, and steps of
# the same size, as without the unlabelled ones.
UNLABELLED = {"data.labelled": "16 per class", "batch_size": 64, "lr": 0.004}


def supervised(name: str, *, labelled: bool = False) -> ConfigDict:
  """The config of a method that learns from labels: MAE's fine-tuning of a ViT-S/16.

  Args:
    name: the method's module in `cxrjax.methods`; its own keys are to be added.
    labelled: whether only part of the labels are known to it, `data.labelled`.
  """
  c = recipe.pretraining()
  c.duration = "75 epochs"
  c.checkpoint.update(every="5 epochs", score="auroc")  # of validation: balanced_accuracy, ...
  c.data.update(split="train[15%:]", repeat=True)
  if labelled:
    c.data.labelled = "10 %"  # part of `subset` whose labels are known; or "16 per class"
    c.data.labelled_share = 0.5  # share of every batch; 0 draws all images equally often
  c.model.drop_path = 0.2
  c.views = {
    "name": "cxrjax.views.multicrop",
    **recipe.pixels(c),
    "global_crops": 1,
    "global_scale": (0.5, 1.0),  # above 1 the image is smaller than the crop
    "local_crops": 0,
    "ratio": (3 / 4, 4 / 3),
    "flip": 0.5,
    "gamma": 0.0,  # of exposure: gray levels to the power e^-gamma to e^gamma
    "brightness": 0.3,
    "contrast": 0.3,
    "jitter_prob": 0.8,
    "blur_prob": 0.0,
    "blur_sigma": (0.1, 1.0),  # pixels
    "solarize_prob": 0.0,
    "rotate": 10.0,  # largest angle, degrees
  }
  c.method = {
    "name": f"cxrjax.methods.{name}",
    "smoothing": 0.1,
    "class_weights": "none",  # or balanced
    "mixup": 0.0,
    "dropout": 0.0,
    "momentum": 0.0,  # of a moving average of the network, which is then evaluated
    "test_scales": (1.0,),  # center crops by share of a side: predictions are averaged
    "test_flip": False,  # also average over the image and its mirror image
  }
  c.optimizer.lr = {"start": 1e-3, "end": 1e-5, "warmup": "5 epochs", "peak": "last"}
  c.optimizer.weight_decay = {"start": 0.05, "end": 0.05}
  c.optimizer.layer_decay = 0.55
  _set_evaluators(c)
  return c


def _set_evaluators(c: ConfigDict) -> None:
  """Validation while training, then tests on the source's split and, if given, on another site."""
  c.evals.probe.data.name = "none"
  known = ("subset", "split_seed", *(["labelled"] if "labelled" in c.data else []))
  own = {key: c.data.get_ref(key) for key in known} | {"train": c.data.get_ref("split")}
  c.evals.validation = {
    "name": "cxrjax.evals.classify",
    "every": c.checkpoint.get_ref("every"),
    # `val` selects checkpoint, temperature and thresholds.
    "data": {"name": "same", "val": "train[:15%]", "test": "test", **own},
    "part": "val",
    "threshold_for": "auto",  # most likely class; or balanced_accuracy, f1, accuracy on `val`
    **recipe.pixels(c, "size"),
    **recipe.decoding(c),
  }
  shared = {key: c.evals.validation.get_ref(key) for key in c.evals.validation if key != "data"}
  shared |= {"every": "chosen", "part": "test"}
  data = c.evals.validation.data
  own = {key: data.get_ref(key) for key in data}
  c.evals.test = {**shared, "data": own}
  c.evals.site = {**shared, "data": {"name": "", "train": "all", "test": "all"}, "fitted": own}


def with_folds(c: ConfigDict) -> ConfigDict:
  """The same config, whose evaluators divide patients as its training does."""
  judges = [judge for name, judge in c.evals.items() if name in ("validation", "test")]
  if c.data.fold:
    for judge in judges:
      judge.data.fold = c.data.get_ref("fold")
    if "site" in c.evals:
      c.evals.site.fitted.fold = c.data.get_ref("fold")
  if c.data.fold.endswith("by image"):  # patients may be on both sides
    c.data.shared_patients = "allow"
    for judge in judges:
      judge.allow_shared_patients = True
  return c
