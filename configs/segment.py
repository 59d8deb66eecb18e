"""Lung segmentation: an encoder and a decoder on radiographs with lung masks.

    python -m cxrjax.main --config=configs/segment.py             # phantoms, a minute: Dice 0.93
    python -m cxrjax.main --config=configs/segment.py:small,data=tfds:nlm_tb/shenzhen,manual_dir=DIR
    python -m cxrjax.main --config=configs/segment.py:paper       # UNETR on a ViT-S/16, 224 px
    python -m cxrjax.main --config=configs/segment.py:tiny        # four steps, for tests

`:small` is a U-Net on a narrow ResNet-18 at 128 px. The checkpoint with the best Dice on validation
is judged on the test split, once; `site=tfds:nlm_tb/montgomery` judges it on another set as well.
On the 118 test images of Shenzhen that have a mask (256 px files), in 27 minutes on one busy core:

    Dice 0.955 (0.949-0.960), IoU 0.915 (0.906-0.923), average surface distance 0.90 (0.80-1.00) and
    95 % Hausdorff distance 3.5 (2.9-4.3) in pixels of 128 px images. The mean training mask: Dice
    0.799 (0.787-0.812). With `components=0` the distances are 0.90 and 3.6, the overlaps the same.

`:paper` has UNETR's optimiser (arXiv 2103.10504, section 4.2) and 150 epochs; its data were other
organs. The data must have lung masks: phantom, nlm_tb, covid19_radiography, jsrt. Images without
one are left out.

A finished run gives other methods masks for sets that have none, `--config.data.masks=WORKDIR`; so
does `zoo:lungs`, the `:small` run that comes with the package.

After the colon stand `key=value` pairs over the options below and those of
`cxrjax/config/recipe.py`; every key of the config is a flag as well,
`--config.optimizer.lr.start=1e-3`.
"""

from ml_collections import ConfigDict

from cxrjax.config import recipe

DEMO = {
  "examples": 256,
  "batch_size": 16,
  "duration": "30 epochs",
  "eval_every": "5 epochs",
  "lr": 0.03,
  "lr_end": 1e-4,
  "masks": "own",  # or the workdir of another segmentation run, for images without one
  "decoder": "auto",  # linear, upsample, unetr or unet; auto is one of the last two
  "width": 8,  # the decoder's channels at the image's size
  "dice": 1.0,  # weights of the losses
  "cross_entropy": 1.0,
  "components": 2,  # parts of a predicted mask that are kept; 0 keeps all
  "scale_least": 0.6,  # share of an image that a crop has at least
  "flip": 0.5,
  "rotate": 10.0,  # degrees, at most
  "jitter": 0.3,  # of brightness and contrast
  "val": "val",  # splits that choose the checkpoint, and judge it
  "test": "test",
  "site": "",  # another source that judges it, all of its images
  "eval_data": "none",
}
SMALL = {
  "store": 144,
  "image_size": 128,
  "model": "resnet18",
  "encoder_width": 24,
  "standardize": True,
  "duration": "60 epochs",
  "lr": 0.03,
  "lr_end": 1e-5,
  "eval_every": "5 epochs",
}
PAPER = {
  "data": "tfds:nlm_tb/shenzhen",
  "batch_size": 16,
  "lr": 1.6e-3,
  "lr_end": 0.0,
  "width": 32,
  "duration": "150 epochs",
  "weight_decay": 1e-5,
  "weight_decay_end": 1e-5,
  "eval_every": "10 epochs",
}
TINY = {"width": 4, "batch_size": 8}


def get_config(arg: str = "") -> ConfigDict:
  o = recipe.parse(arg, DEMO, small=SMALL, paper=PAPER, tiny=TINY)
  config = recipe.base(o)
  config.block = 1  # convolutions in a loop of steps are several times slower on CPUs
  config.data.masks = o.masks
  config.views = recipe.one_view(o)
  config.views.flip, config.views.rotate = o.flip, o.rotate
  config.views.brightness = config.views.contrast = o.jitter
  config.views.jitter_prob = 0.8
  config.method = {
    "name": "cxrjax.methods.segment",
    "decoder": o.decoder,
    "width": o.width,
    "dice": o.dice,
    "cross_entropy": o.cross_entropy,
    "components": o.components,
  }
  config.checkpoint.score = "dice"
  config.evals.validation = judge(o, config, o.data, o.val, o.eval_every)
  config.evals.test = judge(o, config, o.data, o.test, "chosen")
  if o.site:
    config.evals.site = judge(o, config, o.site, "all", "chosen")
  return config


def judge(o: ConfigDict, config: ConfigDict, source: str, split: str, every: str) -> dict:
  """An evaluator of one split of a source."""
  own = {"name": recipe.sources(o), **recipe.source_options(o.data, o)}
  other = {"name": source, **recipe.source_options(source, o)}
  return {
    "name": "cxrjax.evals.segment",
    "every": every,
    "data": {**(own if source == o.data else other), "split": split},
    "train": {**own, "split": o.split},
    "spacing": (1.0, 1.0),
    "components": config.method.get_ref("components"),
    **recipe.pixels(o),
    **recipe.decoding(config),
  }
