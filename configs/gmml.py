"""GMML pretraining (Atito et al. 2022, arXiv 2205.14986), judged by kNN and linear probe.

    python -m cxrjax.main --config=configs/gmml.py                # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/gmml.py:small,data=folder:PATH,split=all  # half an hour
    python -m cxrjax.main --config=configs/gmml.py:paper          # ViT-S/16, 2x224, Kermany
    python -m cxrjax.main --config=configs/gmml.py:tiny           # four steps, for tests

The first ends with a linear probe's AUROC of 0.865 (0.850-0.880) on the phantom's test images with
seed 0, where the random encoder's is 0.826 and thumbnails have 0.923 (2026-11-29; 5 minutes on a
shared core). Neighbours (k = 20) have 0.697, the random encoder's 0.699: see `configs/mae.py`. With
a learning rate of 0.016 they fall to 0.606.

`:paper` is the recipe of SPCXR (Anwar et al. 2022, arXiv 2211.12944), GMML on radiographs with the
defaults of arXiv 2205.14986: batches of 256 and 800 epochs.

After the colon stand `key=value` pairs over the options below and those of
`cxrjax/config/recipe.py`; every key of the config is a flag as well,
`--config.optimizer.lr.start=1e-3`.
"""

from ml_collections import ConfigDict

from cxrjax.config import recipe

DEMO = {
  "lr": 0.004,
  "whiten": True,  # of what draws pixels, the cosine sees little else than exposure
  "pool": "mean",  # what stands for an image: mean of its patches, or cls
  "crops": 1,
  "global_scale": (0.5, 1.0),
  "jitter": 0.0,  # of brightness and contrast
  "jitter_prob": 0.0,
  "blur": 2.0,  # largest sigma, in pixels of a 224 px crop
  "blur_prob": (0.0, 0.0),
  "solarize": (0.0, 0.0),
  "share": 0.75,  # of the pixels that are corrupted, at most
  "fill": "noise",  # or zeros, copy; noise+zeros: one drawn for each image
  "alien": 0.3,  # share that is filled with another image's pixels; 0: never
  "align": 1,  # sides and places of rectangles are multiples of this
}
SMALL = {}
PAPER = {
  "crops": 2,
  "global_scale": (0.05, 1.0),
  "jitter": 0.1,
  "jitter_prob": 0.3,
  "blur_prob": (0.1, 0.1),
  "duration": "800 epochs",
}
TINY = {}


def get_config(arg: str = "") -> ConfigDict:
  o = recipe.parse(arg, DEMO, small=SMALL, paper=PAPER, tiny=TINY)
  config = recipe.base(o)
  config.views = recipe.two_views(o)
  config.views.global_crops = o.crops
  config.method = {
    "name": "cxrjax.methods.gmml",
    "layers": (1 / 2, 2 / 3, 5 / 6, 1),  # shares of the blocks: 6, 8, 10 and 12 of 12
    "corruption": recipe.corruption(o),
  }
  return config
