"""Fine-tuning: an encoder, pretrained or not, learns to classify from few labels or many.

    python -m cxrjax.main --config=configs/finetune.py            # phantoms, from scratch, minutes
    python -m cxrjax.main --config=configs/finetune.py:init=runs/dino,subset=10 %
    python -m cxrjax.main --config=configs/finetune.py:small,data=folder:DIR,init=runs/dino
    python -m cxrjax.main --config=configs/finetune.py:paper,init=deit_small.safetensors
    python -m cxrjax.main --config=configs/finetune.py:tiny       # four steps, for tests

`init=` is the workdir of any finished run, whose network is taken with it, or a file of weights for
the network of `model=`. Without it training starts from scratch.

It learns from `split`, judges itself on `val` as it goes and keeps the checkpoint with the best
`score`; temperature and thresholds are chosen on `val` too. The test split is looked at once, at
the end, with that checkpoint; `site=tfds:other` judges it on another set as well. `subset="10 %"`
takes part of the labels that are learnt from (not of `val`); those of smaller shares lie in larger
ones, and `split_seed=1` draws others. Runs over all shares: `configs/label_efficiency.py`.

Layer decay, drop path, label smoothing, mixup and cosine schedule are MAE's for fine-tuning (He et
al. 2021, arXiv 2111.06377, table 9), milder for sets of a few thousand images.

After the colon stand `key=value` pairs over the options below and those of
`cxrjax/core/experiment.py`; every key of the config is a flag as well, `--config.a.b=value`.
"""

from ml_collections import ConfigDict

from cxrjax.core import experiment

DEMO = {
  "split": "train[15%:]",
  "val": "train[:15%]",     # chooses checkpoint, temperature and thresholds
  "test": "test",
  "site": "",               # another source that judges it, all of its images
  "split_seed": 0,          # another one, another subset
  "score": "auroc",         # of validation: auroc, balanced_accuracy, ...
  "threshold_for": "balanced_accuracy",
  "batch_size": 32,
  "duration": "600 steps",
  "eval_every": "100 steps",
  "warmup": "10 %",
  "lr": 0.008,              # for 256 images
  "lr_end": 1e-6,
  "weight_decay": 0.05,
  "weight_decay_end": 0.05,
  "layer_decay": 0.75,
  "drop_path": 0.1,
  "pool": "",               # cls or mean; "" as the network was trained
  "frozen": "0 steps",      # for so long the head learns alone; "100 %": a linear probe
  "smoothing": 0.1,
  "class_weights": "none",  # or balanced
  "mixup": 0.0,
  "dropout": 0.0,
  "momentum": 0.0,          # of a moving average of the network, which is then judged
  "scale_least": 0.5,       # share of an image that a crop has at least
  "flip": 0.5,
  "rotate": 10.0,           # degrees, at most
  "jitter": 0.3,            # of brightness and contrast
  "eval_data": "none",
}
SMALL = {"lr": 0.008, "duration": "1500 steps", "eval_every": "150 steps", "batch_size": 64}
PAPER = {
  "batch_size": 256, "lr": 1e-3, "duration": "75 epochs", "warmup": "5 epochs", "lr_end": 1e-5,
  "weight_decay_end": 0.05, "layer_decay": 0.55, "drop_path": 0.2, "eval_every": "5 epochs",
}
TINY = {"batch_size": 8}


def get_config(arg: str = "") -> ConfigDict:
  o = experiment.parse(arg, DEMO, small=SMALL, paper=PAPER, tiny=TINY)
  config = experiment.base(o)
  config.data.repeat = True
  config.data.split_seed = o.split_seed
  if o.pool:
    config.model.pool = o.pool
  config.views = experiment.one_view(o)
  config.views.flip, config.views.rotate = o.flip, o.rotate
  config.views.brightness = config.views.contrast = o.jitter
  config.views.jitter_prob = 0.8
  config.method = {
    "name": "cxrjax.methods.classify", "smoothing": o.smoothing,
    "class_weights": o.class_weights, "mixup": o.mixup, "dropout": o.dropout,
    "momentum": o.momentum,
  }
  config.optimizer.layer_decay = o.layer_decay
  if o.frozen != "0 steps":
    config.optimizer.freeze = (("^encoder/", o.frozen),)
  config.checkpoint.score = o.score
  own = {"name": experiment.sources(o), **experiment.source_options(o.data, o), "train": o.split,
         "val": o.val, "test": o.test, "subset": o.subset, "split_seed": o.split_seed}
  config.evals.validation = judge(o, config, own, "val", o.eval_every)
  config.evals.test = judge(o, config, own, "test", "chosen")
  if o.site:
    other = {"name": o.site, **experiment.source_options(o.site, o), "train": "all", "test": "all"}
    config.evals.site = judge(o, config, other, "test", "chosen")
    config.evals.site.fitted = own
  return config


def judge(o: ConfigDict, config: ConfigDict, data: dict, part: str, every: str) -> dict:
  """An evaluator of one part of a source."""
  return {
    "name": "cxrjax.evals.classify", "every": every, "data": data, "part": part,
    "threshold_for": o.threshold_for, "size": o.image_size, "mean": 0.5, "std": 0.25,
    **{key: config.data.get_ref(key) for key in ("fit", "bits", "window", "on_bad_image")},
  }
