"""MC-SSL pretraining (Atito et al. 2021, arXiv 2111.15340), judged by kNN and linear probe.

    python -m cxrjax.main --config=configs/mcssl.py               # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/mcssl.py:small,data=folder:PATH,split=all
    python -m cxrjax.main --config=configs/mcssl.py:paper         # ViT-S/16, 2x224 + 10x96, Kermany
    python -m cxrjax.main --config=configs/mcssl.py:tiny          # four steps, for tests

`:paper` has the defaults of the paper's code with batches of 256 instead of 512. The size of its
small crops and its colours were not to be had and are DINO's, as is all of the heads but their
8192 outputs.

After the colon stand `key=value` pairs over the options below and those of
`cxrjax/core/experiment.py`; every key of the config is a flag as well,
`--config.optimizer.lr.start=1e-3`.
"""

from ml_collections import ConfigDict

from cxrjax.core import experiment

DEMO = {
  "duration": "40 epochs",
  "global_scale": (0.7, 1.0),
  "local_size": 16,
  "local_crops": 2,
  "local_scale": (0.4, 0.8),
  "jitter": 0.5,            # of brightness and contrast
  "jitter_prob": 1.0,
  "blur": 2.8,              # largest sigma, in pixels of a 224 px crop
  "blur_prob": (1.0, 0.1),
  "blur_local": 0.5,
  "solarize": (0.0, 0.0),
  "share": 0.5,             # of the pixels that are corrupted
  "fill": "zeros",          # or noise, copy; noise+zeros: one drawn for each image
  "alien": 0.3,             # share that is filled with another image's pixels; 0: never
  "align": 1,               # sides and places of rectangles are multiples of this
  "prototypes": 128,
  "hidden": 256,
  "bottleneck": 64,
  "batch_norm": True,
  "momentum": 0.99,
  "center_momentum": 0.8,
  "temp_start": 0.02,       # of the teacher; rises to temp_end over temp_warmup
  "temp_end": 0.02,
  "temp_warmup": "0 epochs",
  "data_weight": 1.0,       # of patches' pseudo-labels
  "pixel_weight": 1.0,      # of the reconstruction
}
SMALL = {
  "duration": "9 epochs", "global_scale": (0.4, 1.0), "local_size": 32, "local_scale": (0.2, 0.4),
  "jitter": 0.4, "jitter_prob": 0.8, "blur": 2.0, "prototypes": 1024, "hidden": 512,
  "bottleneck": 128, "momentum": 0.996, "center_momentum": 0.9, "temp_start": 0.04,
  "temp_end": 0.04,
}
PAPER = {
  "global_scale": (0.25, 1.0), "local_size": 96, "local_crops": 10, "local_scale": (0.05, 0.25),
  "jitter": 0.4, "jitter_prob": 0.8, "blur": 2.0, "solarize": (0.0, 0.2), "prototypes": 8192,
  "hidden": 2048, "bottleneck": 256, "batch_norm": False, "momentum": 0.996,
  "center_momentum": 0.9, "temp_start": 0.04, "temp_end": 0.07, "temp_warmup": "30 epochs",
  "duration": "800 epochs",
}
TINY = {"duration": "4 steps", "local_size": 16, "prototypes": 32}


def get_config(arg: str = "") -> ConfigDict:
  o = experiment.parse(arg, DEMO, small=SMALL, paper=PAPER, tiny=TINY)
  config = experiment.base(o)
  config.views = {
    **experiment.two_views(o), "local_size": o.local_size, "local_crops": o.local_crops,
    "local_scale": o.local_scale, "blur_prob": (*o.blur_prob, o.blur_local)}
  config.method = {
    "name": "cxrjax.methods.mcssl", "prototypes": o.prototypes, "hidden": o.hidden,
    "bottleneck": o.bottleneck, "batch_norm": o.batch_norm, "norm_last_layer": True,
    "student_temp": 0.1, "center_momentum": o.center_momentum,
    "teacher_temp": {
      "kind": "stairs", "start": o.temp_start, "end": o.temp_end, "warmup": o.temp_warmup},
    "momentum": {"start": o.momentum, "end": 1.0},
    "data_weight": o.data_weight, "pixel_weight": o.pixel_weight,
    "corruption": {
      "share": o.share, "fill": tuple(o.fill.split("+")), "alien": o.alien, "align": o.align},
  }
  config.optimizer.freeze = (("head/prototypes", "1 epochs"),)
  return config
