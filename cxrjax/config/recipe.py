"""Shared parts of the pretraining configs, so that a config file states only its differences.

A config calls `parse` with its options and presets, then `base` for everything that does not depend
on the method, and fills in `method` and whatever its paper does differently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from cxrjax.config.args import literal, parse_arg, split_items
from cxrjax.core import files, zoo
from cxrjax.core.errors import UserError, suggest

# Options after the colon, with the demo's defaults: synthetic radiographs, minutes on a CPU.
DEMO: dict[str, Any] = {
  "seed": 0,
  "data": "phantom",  # mini, phantom, folder:PATH, tfds:NAME, your module; A+B*2: a pool
  "split": "train",
  "subset": "",  # "10 %" or "16 per class", by patient
  "frontal": False,  # leave out lateral views, where the source labels them
  "manual_dir": "",  # archives that tfds: prepares a dataset from, on first use
  "examples": 2048,  # per split of the phantom
  "sites": 1,  # of the phantom; 2 adds a second style, which is then learned first
  "store": 40,  # pixels per side at which images are stored
  "image_size": 32,  # of large crops, evaluations and the position embedding
  "mean": 0.5,  # gray levels are normalized with these everywhere
  "std": 0.25,
  "init": "",  # start from a finished run, with its network, or a weights file
  "model": "Nu",  # a ViT variant, resnet50, densenet121 (any depth), inception, vitae, your own
  "encoder_width": 0,  # overrides the network's own
  "patch_size": 8,
  "initial": "xavier",
  "standardize": True,  # every image to mean 0 and standard deviation 1
  "drop_path": 0.0,
  "batch_size": 64,
  "duration": "80 epochs",
  "warmup": "10 %",
  "lr": 0.016,  # per 256 images; scaled by batch_size / 256
  "lr_end": 1e-5,
  "optimizer": "adamw",  # or sgd, lars
  "weight_decay": 0.04,  # at the start
  "weight_decay_end": 0.04,
  "eval_data": "same",  # one or more labelled sources, A+B; `same`, or `none`
  "eval_every": "20 epochs",
  "whiten": False,  # also run kNN on whitened features
}
# Demo overrides for the radiographs that come with the package.
MINI: dict[str, Any] = {"store": 64, "image_size": 48}
# Real radiographs, half an hour on two CPU cores.
SMALL: dict[str, Any] = {
  "store": 72,
  "image_size": 64,
  "model": "Mu",
  "standardize": False,
  "duration": "9 epochs",
  "lr": 4e-3,
  "lr_end": 1e-6,
  "eval_every": "1 epochs",
}
# The scale of the papers.
PAPER: dict[str, Any] = {
  "data": "tfds:chest_xray_pneumonia",
  "store": 256,
  "image_size": 224,
  "model": "S",
  "patch_size": 16,
  "initial": "normal",
  "standardize": False,
  "drop_path": 0.1,
  "batch_size": 256,
  "duration": "300 epochs",
  "warmup": "10 epochs",
  "lr": 5e-4,
  "lr_end": 1e-6,
  "weight_decay_end": 0.4,
  "eval_every": "25 epochs",
}
# Four steps, for tests.
TINY: dict[str, Any] = {
  "data": "phantom",
  "examples": 48,
  "store": 32,
  "image_size": 32,
  "batch_size": 8,
  "duration": "4 steps",
  "eval_every": "4 steps",
}
# Options of `two_views`, in the demo and in `small`.
TWO_VIEWS: dict[str, Any] = {
  "global_scale": (0.4, 1.0),
  "jitter": 0.5,  # of brightness and contrast
  "jitter_prob": 1.0,
  "blur": 2.8,  # largest sigma, in pixels of a 224 px crop
  "blur_prob": (0.5, 0.5),  # of the two views
  "solarize": (0.0, 0.0),  # probability, of the two views
}
TWO_VIEWS_SMALL: dict[str, Any] = {
  "global_scale": (0.2, 1.0),
  "jitter": 0.4,
  "jitter_prob": 0.8,
  "blur": 2.0,
}
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
MODES = {"small": SMALL, "paper": PAPER, "tiny": TINY}


def parse(
  arg: str, demo: Mapping[str, Any], *, mini: Mapping[str, Any] = MINI, **presets: Mapping[str, Any]
) -> ConfigDict:
  """Parses the options of `configs/X.py:arg` into attributes.

  Options of the source itself are written `data.csv=labels.csv`; a list of values,
  `data.label_columns=edema;effusion`.

  Args:
    arg: `"small,lr=1e-3"`: names of presets, then options over them.
    demo: the method's own options, and its overrides of `DEMO`.
    mini: overrides for `data=mini` without a preset.
    **presets: overrides for `small`, `paper` and `tiny`, on top of those above, or for presets of
      the method's own.

  Raises:
    UserError: an unknown option or preset.
  """
  arg, data_options = options_of("data", arg)
  arg, model_options = options_of("model", arg)
  modes = dict.fromkeys((*MODES, *presets))
  switches = dict.fromkeys(modes, False)
  values = {**DEMO, **demo}
  options = parse_arg(arg, **switches, **values)
  if options["data"] == "mini" and not any(options[name] for name in modes):
    values |= mini
  for name in modes:
    if options[name]:
      values |= {**MODES.get(name, {}), **presets.get(name, {})}
  parsed = parse_arg(arg, **switches, **values)
  if model_options and not _is_own(parsed["model"]):
    raise UserError(
      f"--config=...:model.{min(model_options)} is no key of the model {parsed['model']!r}"
    )
  return ConfigDict({**parsed, "data_options": data_options, "model_options": model_options})


def options_of(part: str, arg: str | None) -> tuple[str, dict[str, Any]]:
  """Splits an argument into the part without `PART.KEY=VALUE` items, and those by KEY."""
  others, options = [], {}
  for item in split_items(arg):
    name, equals, text = item.partition("=")
    if not name.strip().startswith(f"{part}."):
      others.append(item)
      continue
    if not equals:
      raise UserError(f"--config=...:{item} lacks its value; write it like data.csv=labels.csv")
    values = tuple(literal(value) for value in text.split(";"))
    options[name.strip().removeprefix(f"{part}.")] = values if len(values) > 1 else values[0]
  return ",".join(others), options


def base(o: ConfigDict) -> ConfigDict:
  """The config without its method: data, model, optimizer, checkpoints, evaluation."""
  config = ConfigDict()
  config.task = "cxrjax.tasks.train"
  config.seed = o.seed
  config.duration = o.duration
  config.batch_size = o.batch_size
  config.accumulate = 1  # microbatches per update
  config.block = 2 if o.tiny else 16  # most steps per dispatch, when the data is resident
  config.log_every = "1 %"
  _set_data(config, o)
  config.init = {"path": o.init}
  config.model = backbone(o)
  _set_optimizer(config, o)
  config.mesh = {"fsdp": 1, "rules": ((".*", "fsdp"),)}
  config.checkpoint = {"every": o.eval_every, "keep": 2, "score": "knn20/auroc"}
  config.health = {"patience": 5, "grace": "20 %"}
  # At the end, for the page: saliency maps over some test images, and the share of saliency on the
  # lungs over `lungs` images. Changes no result, and may differ between parts of a run.
  config.explain = {
    "images": 2 if o.tiny else 6,
    "lungs": 0 if o.tiny else 256,
    "methods": "attention" if o.tiny else "auto",  # or names, attention+gradcam
  }
  config.sections = ()  # your own of the page, "my_package.my_file:section"
  config.writers = ()  # where metrics go as well: "wandb", "mlflow", or your own
  _set_probes(config, o)
  return config


def _set_data(config: ConfigDict, o: ConfigDict) -> None:
  """Sets the training images, and how they are decoded, stored and checked."""
  config.data = {
    "source": sources(o),
    "split": o.split,
    "options": source_options(o.data, o),
    "subset": o.subset,  # "10 %", "16 per class"; "": everything
    "fold": "",
    "split_seed": 0,  # "2 of 5"; the seed draws subsets and folds
    "size": o.store,
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


def _set_optimizer(config: ConfigDict, o: ConfigDict) -> None:
  """Sets the optimiser that `o.optimizer` names, with the schedules of the options."""
  if o.optimizer not in OPTIMIZERS:
    known = suggest(o.optimizer, OPTIMIZERS)
    raise UserError(f"option optimizer={o.optimizer!r} is unknown{known}")
  config.optimizer = {
    **OPTIMIZERS[o.optimizer],
    "lr": {"start": o.lr, "end": o.lr_end, "warmup": o.warmup, "peak": "last"},
    "lr_batch": 256,
    "lr_rule": "linear",  # of the batch: linear, or sqrt
    "weight_decay": {"start": o.weight_decay, "end": o.weight_decay_end},
    "decay_vectors": False,  # biases and norms, too
    "clip_per": "tensor",  # module, or global: all parameters together
    "freeze": (),
    "hold": (),  # parameters that stay fixed for some time
    "lr_scale": (),
    "lr_constant": (),
    "layer_decay": 1.0,
  }


def _set_probes(config: ConfigDict, o: ConfigDict) -> None:
  """Sets a probe for every labelled source of `o.eval_data`."""
  config.evals = {}
  labelled = o.data if o.eval_data == "same" else o.eval_data
  pool_or_folder = "+" in labelled or labelled.startswith("folder:")
  if labelled == "none" or (o.eval_data == "same" and pool_or_folder):
    return
  for name, source in evaluation_sources(labelled).items():
    config.evals[name] = {
      "name": "cxrjax.evals.probe",
      "every": o.eval_every,
      "data": {"name": source, **source_options(source, o)},
      "ks": (1, 5, 20),
      "whiten": o.whiten,
      **pixels(o),
      **decoding(config),
    }


def evaluation_sources(labelled: str) -> dict[str, str]:
  """Splits `A+B` into sources that judge an encoder separately, by the names of their evaluators.

  A single source is called `probe`; of several, each is called by the end of its own name:
  `tfds:nlm_tb/shenzhen` is `shenzhen`.

  Raises:
    UserError: two sources with the same name.
  """
  parts = labelled.split("+")
  if len(parts) == 1:
    return {"probe": labelled}
  evaluators: dict[str, str] = {}
  for part in parts:
    name = re.sub(r"\W+", "_", re.split("[:/]", part.rstrip("/"))[-1]) or "probe"
    if name in evaluators:
      raise UserError(
        f"--config=...:eval_data={labelled} has two sources that would be called "
        f"{name!r}; rename a folder, or give one of them"
      )
    evaluators[name] = part
  return evaluators


def pixels(o: ConfigDict, size: str = "size") -> dict[str, Any]:
  """Size and normalization of the network's input, as references: set once, valid everywhere.

  Args:
    o: the options.
    size: key under which the size is stored.
  """
  return {size: o.get_ref("image_size"), "mean": o.get_ref("mean"), "std": o.get_ref("std")}


def decoding(config: ConfigDict) -> dict[str, Any]:
  """Options that turn images into gray levels, as references to those of training."""
  return {key: config.data.get_ref(key) for key in ("fit", "bits", "window", "on_bad_image")}


def one_view(o: ConfigDict) -> dict[str, Any]:
  """`config.views` of masked autoencoders: one randomly flipped crop, `o.scale_least` or larger."""
  return {
    "name": "cxrjax.views.multicrop",
    "global_crops": 1,
    "global_scale": (o.scale_least, 1.0),
    "local_crops": 0,
    "ratio": (3 / 4, 4 / 3),
    "flip": 0.5,
    "brightness": 0.0,
    "contrast": 0.0,
    "jitter_prob": 0.0,
    "blur_prob": 0.0,
    "solarize_prob": 0.0,
    "rotate": 0.0,
  } | pixels(o, "global_size")


def two_views(o: ConfigDict) -> dict[str, Any]:
  """`config.views` of methods that compare two large crops.

  Reads from `o` the options of `TWO_VIEWS`.
  """
  return {
    "name": "cxrjax.views.multicrop",
    "global_crops": 2,
    "global_scale": o.global_scale,
    "local_crops": 0,
    "ratio": (3 / 4, 4 / 3),
    "flip": 0.5,
    "brightness": o.jitter,
    "contrast": o.jitter,
    "jitter_prob": o.jitter_prob,
    "blur_prob": (*o.blur_prob, 0.0),
    "blur_sigma": (0.1, o.blur * o.image_size / 224),
    "solarize_prob": (*o.solarize, 0.0),
    "solarize_threshold": 0.5,
    "rotate": 0.0,
  } | pixels(o, "global_size")


def corruption(o: ConfigDict) -> dict[str, Any]:
  """`config.method.corruption` of GMML and its successors, a `views.corruption.Corruption`."""
  return {"share": o.share, "fill": tuple(o.fill.split("+")), "alien": o.alien, "align": o.align}


def multi_crop(o: ConfigDict) -> dict[str, Any]:
  """`config.views` of DINO and its successors: two large crops and `o.local_crops` small ones.

  Also reads from `o`: `global_scale`, `local_scale`, `local_size`, `jitter` (of brightness and
  contrast), `jitter_prob`, `blur` (largest sigma in pixels of a 224 px crop) and `solarize`, the
  second large crop's probability.
  """
  return {
    "name": "cxrjax.views.multicrop",
    "global_crops": 2,
    "global_scale": o.global_scale,
    "local_size": o.local_size,
    "local_crops": o.local_crops,
    "local_scale": o.local_scale,
    "ratio": (3 / 4, 4 / 3),
    "flip": 0.5,
    "brightness": o.jitter,
    "contrast": o.jitter,
    "jitter_prob": o.jitter_prob,
    "blur_prob": (1.0, 0.1, 0.5),
    "blur_sigma": (0.1, o.blur * o.image_size / 224),
    "solarize_prob": (0.0, o.solarize, 0.0),
    "solarize_threshold": 0.5,
    "rotate": 0.0,
  } | pixels(o, "global_size")


def backbone(o: ConfigDict) -> dict[str, Any]:
  """`config.model`: the network of the run `o.init`, or else the one that `o.model` names."""
  run_config = zoo.resolve_workdir(o.init, "--config=...:init") / "config.json"
  if o.init and run_config.is_file():
    try:
      model = dict(files.read_mapping(run_config)["model"])
    except (OSError, KeyError, TypeError, ValueError) as error:
      raise UserError(
        f"--config=...:init={o.init} holds no run: its config.json cannot be used "
        f"({error}); give the workdir of a finished one"
      ) from error
    overrides = {"drop_path": o.drop_path, "image_size": o.get_ref("image_size")}
    return {**model, **{key: value for key, value in overrides.items() if key in model}}
  return _network(o) | ({"width": o.encoder_width} if o.encoder_width else {})


def _is_own(model: str) -> bool:
  """Whether a model is a user's own, `my_package.net` or `my_package.net:Net`."""
  return "." in model or ":" in model


def _network(o: ConfigDict) -> dict[str, Any]:
  if _is_own(o.model):
    return {"name": o.model, **o.model_options.to_dict()}
  common = {"standardize": o.standardize, "dtype": "auto"}
  convolutional = re.fullmatch("(resnet|densenet)([0-9]+)", o.model)
  if convolutional:
    family, depth = convolutional.groups()
    small = {"small_stem": o.image_size <= 64} if family == "resnet" else {}
    return {"name": f"cxrjax.models.{family}", "depth": int(depth), **small, **common}
  if o.model == "inception":
    return {"name": "cxrjax.models.inception", **common}
  if o.model == "vitae":
    return {
      "name": "cxrjax.models.vitae",
      "variant": "S",
      "drop_path": o.drop_path,
      "initial": o.initial,
      **common,
    }
  return {
    "name": "cxrjax.models.vit",
    "variant": o.model,
    "patch_size": o.patch_size,
    "image_size": o.get_ref("image_size"),
    "registers": 0,
    "drop_path": o.drop_path,
    "initial": o.initial,
    "pool": o.get("pool") or "cls",
    "positions": o.get("positions", "normal"),
    "interpolation": "dino",  # of positions, for crops of other sizes than image_size
    "attention": "auto",
    "remat": False,  # recompute blocks in the backward pass, to save memory
    **common,
  }


def sources(o: ConfigDict) -> Any:
  """`config.data.source`: one name, or for `A+B*2` the parts of a mixture with their weights."""
  parts = [_weighted(part) for part in o.data.split("+")]
  if len(parts) == 1:
    return o.data
  return tuple(
    {
      "source": name,
      "options": source_options(name, o),
      **({} if weight is None else {"weight": weight}),
    }
    for name, weight in parts
  )


def _weighted(part: str) -> tuple[str, float | None]:
  """Parses `A*2` as ("A", 2.0) and `A` as ("A", None)."""
  name, star, weight = part.rpartition("*")
  if not star:
    return part, None
  value = literal(weight)
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise UserError(f"--config=...:data={part}: {weight!r} is no weight; write it like A*2+B")
  return name, float(value)


def source_options(name: str, o: ConfigDict) -> dict[str, Any]:
  """Options after the colon that concern one source; {} where `name` is a whole mixture."""
  names = [_weighted(part)[0] for part in o.data.split("+")]
  options: dict[str, Any] = o.data_options.to_dict() if name in names else {}
  if name == "phantom":
    return {"n": o.examples, "size": o.store, "sites": o.sites, **options}
  if name in names or "+" not in name:
    kind = name.partition(":")[0]
    if kind == "tfds" and o.manual_dir:
      options["manual_dir"] = o.manual_dir
    if kind in ("tfds", "folder") and o.frontal:
      options["views"] = ("PA", "AP")
  return options
