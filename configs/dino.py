"""DINO pretraining (Caron et al. 2021, arXiv 2104.14294), judged by kNN and linear probe.

    python -m cxrjax.main --config=configs/dino.py                # 1,600 real films, two minutes
    python -m cxrjax.main --config=configs/dino.py:data=phantom   # drawn ones
    python -m cxrjax.main --config=configs/dino.py:small,data=folder:PATH,split=all  # half an hour
    python -m cxrjax.main --config=configs/dino.py:paper          # ViT-S/16, 2x224 + 8x96, Kermany
    python -m cxrjax.main --config=configs/dino.py:paper,views.local_crops=0    # DINO-CXR
    python -m cxrjax.main --config=configs/dino.py:data=folder:/my/radiographs,model=Ti
    python -m cxrjax.main --config=configs/dino.py:tiny           # four steps, for tests

The values are those of the authors' code for ViT-S/16; the demo's were tuned on phantoms. Without
small crops it is the cheaper augmentation of DINO-CXR (Shakouri et al. 2023, arXiv 2308.00475),
whose other choices were not to be had; `views.local_crops=0` saves 35 % of a step's operations.
DINO without small crops draws large ones from 14 % of an image: `views.global_scale=(0.14, 1.0)`.
Results: docs/results.md.
"""

from ml_collections import ConfigDict

from cxrjax.config import presets, recipe

DEMO = {
  "data": "mini",
  "duration": "20 epochs",
  "eval_every": "10 epochs",
  "batch_size": 32,  # many small steps learn sooner than few large ones
  "lr": 0.032,
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
  "method.momentum.end": 0.99,  # a teacher that slows down lags behind when so short a run ends
}
MINI = {"views.local_size": 24, "duration": "32 epochs", "eval_every": "16 epochs"}
SMALL = {
  "batch_size": 64,
  "views.global_scale": (0.4, 1.0),
  "views.local_size": 32,
  "views.local_scale": (0.2, 0.5),
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
  "method.momentum.end": 1.0,
}
TINY = {"views.local_size": 16, "method.prototypes": 32}


def get_config(arg: str = "") -> ConfigDict:
  c = recipe.pretraining()
  c.views = {
    "name": "cxrjax.views.multicrop",
    **recipe.pixels(c),
    "global_crops": 2,
    "global_scale": (0.4, 1.0),
    "local_crops": 8,
    "local_size": 96,
    "local_scale": (0.05, 0.4),
    "ratio": (3 / 4, 4 / 3),
    "flip": 0.5,
    "brightness": 0.4,
    "contrast": 0.4,
    "jitter_prob": 0.8,
    "blur_prob": (1.0, 0.1, 0.5),  # of the first large crop, the second, and small ones
    "blur_sigma": (0.1, 2.0),
    "blur_size": 224,
    "solarize_prob": (0.0, 0.2, 0.0),
    "solarize_threshold": 0.5,
    "rotate": 0.0,
  }
  c.method = {
    "name": "cxrjax.methods.dino",
    "prototypes": 65536,
    "hidden": 2048,
    "bottleneck": 256,
    "batch_norm": False,
    "norm_last_layer": True,
    "student_temp": 0.1,
    "center_momentum": 0.9,
    "teacher_temp": {"kind": "stairs", "start": 0.04, "end": 0.07, "warmup": "30 epochs"},
    "momentum": {"start": 0.9995, "end": 1.0},  # for small batches; 0.996 for 1024 images
  }
  c.optimizer.freeze = (("head/prototypes", "1 epochs"),)
  return presets.apply(c, arg, demo=DEMO, mini=MINI, small=SMALL, tiny=TINY)
