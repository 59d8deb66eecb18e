"""Lung segmentation: an encoder and a decoder on radiographs with lung masks.

    python -m cxrjax.main --config=configs/segment.py             # phantoms, a minute: Dice 0.93
    python -m cxrjax.main --config=configs/segment.py:small,data=tfds:nlm_tb/shenzhen,manual_dir=DIR
    python -m cxrjax.main --config=configs/segment.py:paper       # UNETR on a ViT-S/16, 224 px
    python -m cxrjax.main --config=configs/segment.py:tiny        # four steps, for tests

`:small` is a U-Net on a narrow ResNet-18 at 128 px. The checkpoint with the best Dice on validation
is judged on the test split, once; `site=tfds:nlm_tb/montgomery` judges it on another set as well.
`:paper` has UNETR's optimiser (arXiv 2103.10504, section 4.2) and 150 epochs; its data were other
organs. The data must have lung masks: phantom, nlm_tb, covid19_radiography, jsrt. Images without
one are left out. A finished run gives other methods masks for sets that have none,
`data.masks=WORKDIR`; so does `zoo:lungs`, the `:small` run that comes with the package.
"""

from ml_collections import ConfigDict

from cxrjax.config import presets, recipe

DEMO = {
  "data.n": 256,
  "batch_size": 16,
  "duration": "30 epochs",
  "eval_every": "5 epochs",
  "lr": 0.03,
  "optimizer.lr.end": 1e-4,
  "method.width": 8,
}
SMALL = {
  "store": 144,
  "image_size": 128,
  "model": "resnet18",
  "model.width": 24,
  "model.standardize": True,
  "duration": "60 epochs",
  "eval_every": "5 epochs",
  "lr": 0.03,
  "optimizer.lr.end": 1e-5,
}
TINY = {"method.width": 4, "batch_size": 8, "block": 1}


def get_config(arg: str = "") -> ConfigDict:
  c = recipe.pretraining()
  c.batch_size = 16
  c.duration = "150 epochs"
  c.block = 1  # convolutions in a loop of steps are several times slower on CPUs
  c.checkpoint.update(every="10 epochs", score="dice")
  c.data.update(source="tfds:nlm_tb/shenzhen", masks="own")  # or a segmentation run's workdir
  c.views = {
    "name": "cxrjax.views.multicrop",
    **recipe.pixels(c),
    "global_crops": 1,
    "global_scale": (0.6, 1.0),
    "local_crops": 0,
    "ratio": (3 / 4, 4 / 3),
    "flip": 0.5,
    "brightness": 0.3,
    "contrast": 0.3,
    "jitter_prob": 0.8,
    "blur_prob": 0.0,
    "solarize_prob": 0.0,
    "rotate": 10.0,  # degrees, at most
  }
  c.method = {
    "name": "cxrjax.methods.segment",
    "decoder": "auto",  # linear, upsample, unetr or unet; auto is one of the last two
    "width": 32,  # the decoder's channels at the image's size
    "dice": 1.0,  # weights of the losses
    "cross_entropy": 1.0,
    "components": 2,  # largest ones of a predicted mask that are kept; 0 keeps all
  }
  c.optimizer.lr.update(start=1.6e-3, end=0.0)
  c.optimizer.weight_decay = {"start": 1e-5, "end": 1e-5}
  c.evals.probe.data.name = "none"
  c.evals.validation = judge(c, c.checkpoint.get_ref("every"), "same", "val")
  c.evals.test = judge(c, "chosen", "same", "test")
  c.evals.site = judge(c, "chosen", "", "all")
  return presets.apply(c, arg, demo=DEMO, small=SMALL, tiny=TINY)


def judge(c: ConfigDict, every: str, source: str, split: str) -> dict:
  """An evaluator of one split of a source."""
  return {
    "name": "cxrjax.evals.segment",
    "every": every,
    "data": {"name": source, "split": split},
    "train": {"name": "same", "split": c.data.get_ref("split")},
    "spacing": (1.0, 1.0),
    "components": c.method.get_ref("components"),
    **recipe.pixels(c, "size"),
    **recipe.decoding(c),
  }
