"""SiT pretraining (Atito et al. 2021, arXiv 2104.03602), judged by kNN and linear probe.

    python -m cxrjax.main --config=configs/sit.py                 # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/sit.py:small,data=folder:PATH,split=all # half an hour
    python -m cxrjax.main --config=configs/sit.py:paper           # ViT-S/16, 2x224, Kermany
    python -m cxrjax.main --config=configs/sit.py:tiny            # four steps, for tests

`:paper` has the defaults of the paper's code. Its authors advise a larger weight of the
reconstruction for small sets, such as `method.weight=5`.
"""

from ml_collections import ConfigDict

from cxrjax.config import presets, recipe

DEMO = {
  **recipe.TWO_VIEWS,
  "duration": "40 epochs",
  "method.hidden": 256,
  "method.dim": 64,
  "method.momentum.start": 0.99,
}
SMALL = {
  **recipe.TWO_VIEWS_SMALL,
  "method.hidden": 512,
  "method.dim": 128,
  "method.momentum.start": 0.996,
}
TINY = {"method.hidden": 32, "method.dim": 16}


def get_config(arg: str = "") -> ConfigDict:
  c = recipe.pretraining()
  c.duration = "800 epochs"
  c.views = {
    "name": "cxrjax.views.multicrop",
    **recipe.pixels(c),
    "global_crops": 2,
    "global_scale": (0.2, 1.0),
    "local_crops": 0,
    "ratio": (3 / 4, 4 / 3),
    "flip": 0.5,
    "brightness": 0.4,
    "contrast": 0.4,
    "jitter_prob": 0.8,
    "blur_prob": (1.0, 0.1, 0.0),
    "blur_sigma": (0.1, 2.0),
    "blur_size": 224,
    "solarize_prob": (0.0, 0.2, 0.0),
    "solarize_threshold": 0.5,
    "rotate": 0.0,
  }
  c.method = {
    "name": "cxrjax.methods.sit",
    "hidden": 4096,
    "dim": 256,
    "temperature": 0.2,
    "momentum": {"start": 0.996, "end": 1.0},
    "weight": 1.0,  # of the reconstruction
    "layers": (1,),  # the last block alone is restored from, where GMML takes four
    "corruption": {
      "share": 0.5,  # of the pixels, in rectangles
      "fill": ("zeros",),  # noise, zeros, copy; of several, one is drawn for each image
      "alien": 0.3,  # share that is filled with another image's pixels; 0: never
      "align": 1,  # sides and places of rectangles are multiples of this
    },
  }
  c.optimizer.weight_decay.end = 0.1
  return presets.apply(c, arg, demo=DEMO, small=SMALL, tiny=TINY)
