"""GMML pretraining (Atito et al. 2022, arXiv 2205.14986), judged by kNN and linear probe.

    python -m cxrjax.main --config=configs/gmml.py                # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/gmml.py:small,data=folder:PATH,split=all # half an hour
    python -m cxrjax.main --config=configs/gmml.py:paper          # ViT-S/16, 2x224, Kermany
    python -m cxrjax.main --config=configs/gmml.py:tiny           # four steps, for tests

`:paper` is the recipe of SPCXR (Anwar et al. 2022, arXiv 2211.12944), GMML on radiographs with the
defaults of arXiv 2205.14986: batches of 256 and 800 epochs.
"""

from ml_collections import ConfigDict

from cxrjax.config import presets, recipe

DEMO = {
  "lr": 0.004,
  "views.global_crops": 1,
  "views.global_scale": (0.5, 1.0),
  "views.brightness": 0.0,
  "views.contrast": 0.0,
  "views.jitter_prob": 0.0,
  "views.blur_prob": (0.0, 0.0, 0.0),
}


def get_config(arg: str = "") -> ConfigDict:
  c = recipe.pretraining()
  c.duration = "800 epochs"
  c.model.pool = "mean"  # of patches; GMML trains no class token
  c.evals.probe.whiten = True  # of what draws pixels, the cosine sees little else than exposure
  c.views = {
    "name": "cxrjax.views.multicrop",
    **recipe.pixels(c),
    "global_crops": 2,
    "global_scale": (0.05, 1.0),
    "local_crops": 0,
    "ratio": (3 / 4, 4 / 3),
    "flip": 0.5,
    "brightness": 0.1,
    "contrast": 0.1,
    "jitter_prob": 0.3,
    "blur_prob": (0.1, 0.1, 0.0),
    "blur_sigma": (0.1, 2.0),
    "blur_size": 224,
    "solarize_prob": (0.0, 0.0, 0.0),
    "solarize_threshold": 0.5,
    "rotate": 0.0,
  }
  c.method = {
    "name": "cxrjax.methods.gmml",
    "layers": (1 / 2, 2 / 3, 5 / 6, 1),  # shares of the blocks: 6, 8, 10 and 12 of 12
    "corruption": {
      "share": 0.75,  # of the pixels, at most
      "fill": ("noise",),  # noise, zeros, copy; of several, one is drawn for each image
      "alien": 0.3,  # share that is filled with another image's pixels; 0: never
      "align": 1,  # sides and places of rectangles are multiples of this
    },
  }
  return presets.apply(c, arg, demo=DEMO)
