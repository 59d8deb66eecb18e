"""MC-SSL pretraining (Atito et al. 2021, arXiv 2111.15340), judged by kNN and linear probe.

    python -m cxrjax.main --config=configs/mcssl.py               # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/mcssl.py:small,data=folder:PATH,split=all
    python -m cxrjax.main --config=configs/mcssl.py:paper         # ViT-S/16, 2x224 + 10x96, Kermany
    python -m cxrjax.main --config=configs/mcssl.py:tiny          # four steps, for tests

`:paper` has the defaults of the paper's code with batches of 256 instead of 512. The size of its
small crops and its colours were not to be had and are DINO's, as is all of the heads but their
8192 outputs.

After the colon stand `key=value` pairs over the options below, those of
`cxrjax/config/self_distillation.py` and of `cxrjax/config/recipe.py`; every key of the config is a
flag as well, `--config.optimizer.lr.start=1e-3`.
"""

from ml_collections import ConfigDict

from cxrjax.config import recipe, self_distillation

DEMO = {
  "duration": "40 epochs",
  **self_distillation.DEMO,
  "blur_prob": (1.0, 0.1),
  "blur_local": 0.5,
  "solarize": (0.0, 0.0),
  "share": 0.5,  # of the pixels that are corrupted
  "fill": "zeros",  # or noise, copy; noise+zeros: one drawn for each image
  "alien": 0.3,  # share that is filled with another image's pixels; 0: never
  "align": 1,  # sides and places of rectangles are multiples of this
  "data_weight": 1.0,  # of patches' pseudo-labels
  "pixel_weight": 1.0,  # of the reconstruction
}
SMALL = {**self_distillation.SMALL, "duration": "9 epochs", "local_scale": (0.2, 0.4)}
PAPER = {
  **self_distillation.PAPER,
  "global_scale": (0.25, 1.0),
  "local_crops": 10,
  "local_scale": (0.05, 0.25),
  "solarize": (0.0, 0.2),
  "prototypes": 8192,
  "duration": "800 epochs",
}
TINY = {**self_distillation.TINY, "duration": "4 steps"}


def get_config(arg: str = "") -> ConfigDict:
  o = recipe.parse(arg, DEMO, small=SMALL, paper=PAPER, tiny=TINY)
  config = recipe.base(o)
  config.views = {
    **recipe.two_views(o),
    "local_size": o.local_size,
    "local_crops": o.local_crops,
    "local_scale": o.local_scale,
    "blur_prob": (*o.blur_prob, o.blur_local),
  }
  config.method = {
    **self_distillation.method(o, "mcssl"),
    "data_weight": o.data_weight,
    "pixel_weight": o.pixel_weight,
    "corruption": recipe.corruption(o),
  }
  config.optimizer.freeze = (("head/prototypes", "1 epochs"),)
  return config
