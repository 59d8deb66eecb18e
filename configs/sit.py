"""SiT pretraining (Atito et al. 2021, arXiv 2104.03602), judged by kNN and linear probe.

    python -m cxrjax.main --config=configs/sit.py                 # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/sit.py:small,data=folder:PATH,split=all  # half an hour
    python -m cxrjax.main --config=configs/sit.py:paper           # ViT-S/16, 2x224, Kermany
    python -m cxrjax.main --config=configs/sit.py:tiny            # four steps, for tests

`:paper` has the defaults of the paper's code. Its authors advise a larger weight of the
reconstruction for small sets, such as `weight=5`.

After the colon stand `key=value` pairs over the options below and those of
`cxrjax/config/recipe.py`; every key of the config is a flag as well,
`--config.optimizer.lr.start=1e-3`.
"""

from ml_collections import ConfigDict

from cxrjax.config import recipe

DEMO = {
  "duration": "40 epochs",
  **recipe.TWO_VIEWS,
  "share": 0.5,  # of the pixels that are corrupted
  "fill": "zeros",  # or noise, copy; noise+zeros: one drawn for each image
  "alien": 0.3,  # share that is filled with another image's pixels; 0: never
  "align": 1,  # sides and places of rectangles are multiples of this
  "hidden": 256,
  "dim": 64,
  "momentum": 0.99,
  "weight": 1.0,  # of the reconstruction
}
SMALL = {
  **recipe.TWO_VIEWS_SMALL,
  "duration": "9 epochs",
  "hidden": 512,
  "dim": 128,
  "momentum": 0.996,
}
PAPER = {
  "global_scale": (0.2, 1.0),
  "jitter": 0.4,
  "jitter_prob": 0.8,
  "blur": 2.0,
  "blur_prob": (1.0, 0.1),
  "solarize": (0.0, 0.2),
  "hidden": 4096,
  "dim": 256,
  "momentum": 0.996,
  "duration": "800 epochs",
  "weight_decay_end": 0.1,
}
TINY = {"duration": "4 steps", "hidden": 32, "dim": 16}


def get_config(arg: str = "") -> ConfigDict:
  o = recipe.parse(arg, DEMO, small=SMALL, paper=PAPER, tiny=TINY)
  config = recipe.base(o)
  config.views = recipe.two_views(o)
  config.method = {
    "name": "cxrjax.methods.sit",
    "hidden": o.hidden,
    "dim": o.dim,
    "temperature": 0.2,
    "momentum": {"start": o.momentum, "end": 1.0},
    "weight": o.weight,
    "layers": (1,),  # the last block alone is restored from, where GMML takes four
    "corruption": recipe.corruption(o),
  }
  return config
