"""MC-SSL pretraining (Atito et al. 2021, arXiv 2111.15340), judged by kNN and linear probe.

    python -m cxrjax.main --config=configs/mcssl.py               # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/mcssl.py:small,data=folder:PATH,split=all
    python -m cxrjax.main --config=configs/mcssl.py:paper         # ViT-S/16, 2x224 + 10x96, Kermany
    python -m cxrjax.main --config=configs/mcssl.py:tiny          # four steps, for tests

`:paper` has the defaults of the paper's code with batches of 256 instead of 512. The size of its
small crops and its colours were not to be had and are DINO's, as is all of the heads but their
8192 outputs.
"""

from ml_collections import ConfigDict

from cxrjax.config import presets, recipe

DEMO = {
  "duration": "40 epochs",
  "views.global_scale": (0.7, 1.0),
  "views.local_crops": 2,
  "views.local_size": 16,
  "views.local_scale": (0.4, 0.8),
  "views.brightness": 0.5,
  "views.contrast": 0.5,
  "views.jitter_prob": 1.0,
  "views.blur_sigma": (0.1, 2.8),
  "views.solarize_prob": (0.0, 0.0, 0.0),
  "method.prototypes": 128,
  "method.hidden": 256,
  "method.bottleneck": 64,
  "method.batch_norm": True,
  "method.center_momentum": 0.8,
  "method.teacher_temp.start": 0.02,
  "method.teacher_temp.end": 0.02,
  "method.teacher_temp.warmup": "0 epochs",
  "method.momentum.start": 0.99,
}
SMALL = {
  "views.global_scale": (0.4, 1.0),
  "views.local_size": 32,
  "views.local_scale": (0.2, 0.4),
  "views.brightness": 0.4,
  "views.contrast": 0.4,
  "views.jitter_prob": 0.8,
  "views.blur_sigma": (0.1, 2.0),
  "method.prototypes": 1024,
  "method.hidden": 512,
  "method.bottleneck": 128,
  "method.center_momentum": 0.9,
  "method.teacher_temp.start": 0.04,
  "method.teacher_temp.end": 0.04,
  "method.momentum.start": 0.996,
}
TINY = {"views.local_size": 16, "method.prototypes": 32}


def get_config(arg: str = "") -> ConfigDict:
  c = recipe.pretraining()
  c.duration = "800 epochs"
  c.views = {
    "name": "cxrjax.views.multicrop",
    **recipe.pixels(c),
    "global_crops": 2,
    "global_scale": (0.25, 1.0),
    "local_crops": 10,
    "local_size": 96,
    "local_scale": (0.05, 0.25),
    "ratio": (3 / 4, 4 / 3),
    "flip": 0.5,
    "brightness": 0.4,
    "contrast": 0.4,
    "jitter_prob": 0.8,
    "blur_prob": (1.0, 0.1, 0.5),
    "blur_sigma": (0.1, 2.0),
    "blur_size": 224,
    "solarize_prob": (0.0, 0.2, 0.0),
    "solarize_threshold": 0.5,
    "rotate": 0.0,
  }
  c.method = {
    "name": "cxrjax.methods.mcssl",
    "prototypes": 8192,
    "hidden": 2048,
    "bottleneck": 256,
    "batch_norm": False,
    "norm_last_layer": True,
    "student_temp": 0.1,
    "center_momentum": 0.9,
    "teacher_temp": {"kind": "stairs", "start": 0.04, "end": 0.07, "warmup": "30 epochs"},
    "momentum": {"start": 0.996, "end": 1.0},
    "data_weight": 1.0,  # of patches' pseudo-labels
    "pixel_weight": 1.0,  # of the reconstruction
    "corruption": {
      "share": 0.5,  # of the pixels, in rectangles
      "fill": ("zeros",),  # noise, zeros, copy; of several, one is drawn for each image
      "alien": 0.3,  # share that is filled with another image's pixels; 0: never
      "align": 1,  # sides and places of rectangles are multiples of this
    },
  }
  c.optimizer.freeze = (("head/prototypes", "1 epochs"),)
  return presets.apply(c, arg, demo=DEMO, small=SMALL, tiny=TINY)
