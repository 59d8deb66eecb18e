"""RGMIM pretraining (Li et al. 2022, arXiv 2211.00313): MAE whose masks are drawn in the lungs.

    python -m cxrjax.main --config=configs/rgmim.py               # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/rgmim.py:small,data=tfds:nlm_tb/shenzhen,split=all
    python -m cxrjax.main --config=configs/rgmim.py:paper         # ViT-B/16, COVID-19 Radiography
    python -m cxrjax.main --config=configs/rgmim.py:tiny          # four steps, for tests

Data that have lung masks: phantom, covid19_radiography, jsrt, nlm_tb. For others a network of the
package, or your own run of `configs/segment.py`, predicts them, once, when the images are loaded:

    python -m cxrjax.main --config=configs/rgmim.py:data=mini,masks=zoo:lungs

The paper's ratios were not to be had: `mask_ratio` and the rest of `:paper` are MAE's, `lung_ratio`
is ours.

After the colon stand `key=value` pairs over the options below and those of
`cxrjax/config/recipe.py`; every key of the config is a flag as well,
`--config.optimizer.lr.start=1e-3`.
"""

from ml_collections import ConfigDict

from cxrjax.config import recipe

DEMO = {
  "duration": "240 epochs",
  "eval_every": "60 epochs",
  "lr": 0.004,
  "scale_least": 0.2,  # share of an image that a crop has at least
  "mask_ratio": 0.75,  # of all patches
  "lung_ratio": 0.9,  # of those in the lungs, at most
  "masks": "own",  # the data's own lung masks; or a segmentation run's workdir
  "norm_pixels": True,
  "whiten": True,  # of what draws pixels, the cosine sees little else than exposure
  "positions": "sincos",
  "pool": "mean",  # what stands for an image: mean of its patches, or cls
  "decoder_width": 64,
  "decoder_depth": 1,
  "decoder_heads": 4,
}
SMALL = {"decoder_width": 128, "decoder_depth": 2}
PAPER = {
  "data": "tfds:covid19_radiography",
  "model": "B",
  "scale_least": 0.2,
  "decoder_width": 512,
  "decoder_depth": 8,
  "decoder_heads": 16,
  "initial": "xavier",
  "drop_path": 0.0,
  "pool": "cls",
  "duration": "800 epochs",
  "warmup": "40 epochs",
  "lr": 1.5e-4,
  "lr_end": 0.0,
  "weight_decay": 0.05,
  "weight_decay_end": 0.05,
}
TINY = {"decoder_width": 16}


def get_config(arg: str = "") -> ConfigDict:
  o = recipe.parse(arg, DEMO, small=SMALL, paper=PAPER, tiny=TINY)
  config = recipe.base(o)
  config.data.masks = o.masks
  config.views = recipe.one_view(o)
  config.optimizer.lr_scale = (("encoder/pos", 0.0),)
  if o.paper:
    config.optimizer.lr.peak = "next"  # as MAE's code
  if o.optimizer == "adamw":
    config.optimizer.options.b2 = 0.95
    config.optimizer.clip = 0.0
  config.method = {
    "name": "cxrjax.methods.rgmim",
    "mask_ratio": o.mask_ratio,
    "lung_ratio": o.lung_ratio,
    "norm_pixels": o.norm_pixels,
    "decoder_width": o.decoder_width,
    "decoder_depth": o.decoder_depth,
    "decoder_heads": o.decoder_heads,
  }
  return config
