"""The recipe that all pretraining configs share, at the scale of the papers, and its presets.

A config file starts from `pretraining()`, adds `views`, `method` and what its paper does
differently, and ends with `presets.apply`, which puts presets and typed keys over it.
"""

from __future__ import annotations

import re
from typing import Any

from ml_collections import ConfigDict

# Adam as used for DINO and most transformers, clipped per tensor; momentum SGD and LARS as used for
# convolutional networks, with weight decay added to the gradient.
OPTIMIZERS: dict[str, dict[str, Any]] = {
  "adamw": {
    "name": "optax.scale_by_adam",
    "options": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "coupled_decay": False,
    "clip": 3.0,
  },
  "sgd": {"name": "optax.trace", "options": {"decay": 0.9}, "coupled_decay": True, "clip": 0.0},
  "lars": {
    "name": "cxrjax.training.lars",
    "options": {"momentum": 0.9, "trust": 1e-3},
    "coupled_decay": True,
    "clip": 0.0,
  },
}
# Presets over `pretraining()`; those of a config file come on top. `demo` holds where neither a
# preset nor `paper` is chosen, and below all but `paper`.
PRESETS: dict[str, dict[str, Any]] = {
  "demo": {  # synthetic radiographs, minutes on a CPU
    "data": "phantom",
    "store": 40,
    "image_size": 32,
    "model": "Nu",
    "model.patch_size": 8,
    "model.initial": "xavier",
    "model.standardize": True,
    "model.drop_path": 0.0,
    "batch_size": 64,
    "duration": "80 epochs",
    "eval_every": "20 epochs",
    "optimizer": "adamw",
    "lr": 0.016,
    "optimizer.lr.end": 1e-5,
    "optimizer.lr.warmup": "10 %",
    "optimizer.lr.peak": "last",
    "weight_decay": 0.04,
  },
  "mini": {"store": 64, "image_size": 48},  # the demo on the radiographs of the package
  "small": {  # real radiographs, half an hour on two CPU cores
    "store": 72,
    "image_size": 64,
    "model": "Mu",
    "model.standardize": False,
    "duration": "9 epochs",
    "eval_every": "1 epochs",
    "lr": 4e-3,
    "optimizer.lr.end": 1e-6,
  },
  "paper": {},
  "tiny": {  # four steps, for tests
    "data": "phantom",
    "data.n": 48,
    "store": 32,
    "image_size": 32,
    "batch_size": 8,
    "block": 2,
    "duration": "4 steps",
    "eval_every": "4 steps",
    "explain.images": 2,
    "explain.lungs": 0,
    "explain.methods": "attention",
  },
}
# Views of methods that compare two large crops, in the demo and in `small`.
TWO_VIEWS: dict[str, Any] = {
  "views.global_scale": (0.4, 1.0),
  "views.brightness": 0.5,
  "views.contrast": 0.5,
  "views.jitter_prob": 1.0,
  "views.blur_sigma": (0.1, 2.8),
  "views.blur_prob": (0.5, 0.5, 0.0),
  "views.solarize_prob": (0.0, 0.0, 0.0),
}
TWO_VIEWS_SMALL: dict[str, Any] = {
  "views.global_scale": (0.2, 1.0),
  "views.brightness": 0.4,
  "views.contrast": 0.4,
  "views.jitter_prob": 0.8,
  "views.blur_sigma": (0.1, 2.0),
}


def pretraining() -> ConfigDict:
  """The config without views and method: ViT-S/16 on Kermany's radiographs, 300 epochs of 256."""
  c = ConfigDict()
  c.task = "cxrjax.tasks.train"
  c.seed = 0
  c.duration = "300 epochs"
  c.batch_size = 256
  c.accumulate = 1  # microbatches per update
  c.block = 16  # most steps per dispatch, when the data is resident
  c.log_every = "1 %"
  c.data = {
    "source": "tfds:chest_xray_pneumonia",  # mini, phantom, folder:PATH, tfds:NAME, your module
    "split": "train",
    "options": {},  # of the source, typed as data.KEY
    "subset": "",  # "10 %", "16 per class"; "": everything
    "fold": "",  # "2 of 5"
    "split_seed": 0,  # draws subsets and folds
    "size": 256,  # pixels per side at which images are stored
    "fit": "squash",  # squash, pad or crop to a square
    "bits": "auto",  # 8, 16, or what the images have
    "window": "auto",  # of 16-bit images: auto, full, or gray levels "low,high"
    "repeat": False,  # allow fewer images than a batch has
    "masks": "",  # lung masks: "own", or a segmentation run's workdir
    "storage": "auto",  # resident, cached, streamed, or by size
    "cache_dir": "",  # decoded images; by default ~/.cache/cxrjax
    "on_bad_image": "error",  # or skip
    "shared_patients": "error",  # patients that are also in a test split: error or allow
    "near_duplicates": 0.9,  # correlation above which test images are reported; 0: off
  }
  c.init = {"path": ""}
  c.checkpoint = {"every": "25 epochs", "keep": 2, "score": "knn20/auroc"}
  # A copy for each labelled source of `eval_data`. Size, mean and std are those of the views.
  probe = {"size": 224, "mean": 0.5, "std": 0.25, "ks": (1, 5, 20), "whiten": False}
  c.evals = {"probe": {"name": "cxrjax.evals.probe", **probe, "data": {"name": "same"}}}
  c.evals.probe.update(every=c.checkpoint.get_ref("every"), **decoding(c))
  c.model = network(c, "S")
  c.optimizer = {
    **OPTIMIZERS["adamw"],
    "lr": {"start": 5e-4, "end": 1e-6, "warmup": "10 epochs", "peak": "last"},
    "lr_batch": 256,  # images that lr is for
    "lr_rule": "linear",  # of the batch: linear, or sqrt
    "weight_decay": {"start": 0.04, "end": 0.4},
    "decay_vectors": False,  # biases and norms, too
    "clip_per": "tensor",  # module, or global: all parameters together
    "freeze": (),
    "hold": (),  # parameters that stay fixed for some time
    "lr_scale": (),
    "lr_constant": (),
    "layer_decay": 1.0,
  }
  c.mesh = {"fsdp": 1, "rules": ((".*", "fsdp"),)}
  c.health = {"patience": 5, "grace": "20 %"}
  # At the end, for the page: saliency maps over some test images, and the share of saliency on the
  # lungs over `lungs` images. Changes no result, and may differ between parts of a run.
  c.explain = {"images": 6, "lungs": 256, "methods": "auto"}  # or names, attention+gradcam
  c.sections = ()  # your own of the page, "my_package.my_file:section"
  c.writers = ()  # where metrics go as well: "wandb", "mlflow", or your own
  return c


def set_optimizer(c: ConfigDict, name: str) -> None:
  """Replaces what depends on the optimiser: its transformation, options, decay and clipping."""
  c.optimizer.options = ConfigDict()
  c.optimizer.update(OPTIMIZERS[name])


def pixels(c: ConfigDict, size: str = "global_size") -> dict[str, Any]:
  """Size, under the key `size`, and normalisation of the network's input, as references."""
  probe = c.evals.probe
  return {size: probe.get_ref("size"), "mean": probe.get_ref("mean"), "std": probe.get_ref("std")}


def decoding(c: ConfigDict) -> dict[str, Any]:
  """Options that turn images into gray levels, as references to those of training."""
  return {key: c.data.get_ref(key) for key in ("fit", "bits", "window", "on_bad_image")}


def network(c: ConfigDict, name: str) -> dict[str, Any]:
  """`config.model` by its short name.

  Args:
    c: the config, for the images' size.
    name: a ViT variant, resnet50, densenet121 (any depth), inception, vitae, or your own,
      `my_package.net` or `my_package.net:Net`.
  """
  if "." in name or ":" in name:
    return {"name": name}
  common = {"standardize": False, "dtype": "auto"}
  convolutional = re.fullmatch("(resnet|densenet)([0-9]+)", name)
  if convolutional:
    family, depth = convolutional.groups()
    return {"name": f"cxrjax.models.{family}", "depth": int(depth), **common}
  if name == "inception":
    return {"name": "cxrjax.models.inception", **common}
  common |= {"drop_path": 0.1, "initial": "normal"}
  if name == "vitae":
    return {"name": "cxrjax.models.vitae", "variant": "S", **common}
  return {
    "name": "cxrjax.models.vit",
    "variant": name,
    "patch_size": 16,
    "image_size": c.evals.probe.get_ref("size"),
    "registers": 0,
    "pool": "cls",
    "positions": "normal",
    "interpolation": "dino",  # of positions, for crops of other sizes than image_size
    "attention": "auto",
    "remat": False,  # recompute blocks in the backward pass, to save memory
    **common,
  }
