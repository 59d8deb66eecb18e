"""MAE pretraining (He et al. 2021, arXiv 2111.06377), judged by kNN and linear probe.

    python -m cxrjax.main --config=configs/mae.py                 # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/mae.py:small,data=folder:PATH,split=all # half an hour
    python -m cxrjax.main --config=configs/mae.py:paper           # ViT-S/16, 75 % masked, Kermany
    python -m cxrjax.main --config=configs/mae.py:tiny            # four steps, for tests

`:paper` has the paper's values with batches of 256 instead of 4096 and ViT-S instead of ViT-L.
Medical MAE (arXiv 2210.12843, on 0.5 M radiographs) differs from it in `method.mask_ratio=0.9,
method.norm_pixels=False,views.global_scale=(0.5, 1.0),method.decoder_depth=2`.
"""

from ml_collections import ConfigDict

from cxrjax.config import presets, recipe

DEMO = {
  "duration": "240 epochs",
  "eval_every": "60 epochs",
  "lr": 0.004,
  "model.pool": "mean",
  "method.decoder_width": 64,
  "method.decoder_depth": 1,
  "method.decoder_heads": 4,
}
SMALL = {"method.decoder_width": 128, "method.decoder_depth": 2}
TINY = {"method.decoder_width": 16}


def get_config(arg: str = "") -> ConfigDict:
  c = recipe.pretraining()
  c.duration = "800 epochs"
  c.model.update(positions="sincos", initial="xavier", drop_path=0.0)
  c.evals.probe.whiten = True  # of what draws pixels, the cosine sees little else than exposure
  c.views = {
    "name": "cxrjax.views.multicrop",
    **recipe.pixels(c),
    "global_crops": 1,
    "global_scale": (0.2, 1.0),
    "local_crops": 0,
    "ratio": (3 / 4, 4 / 3),
    "flip": 0.5,
    "brightness": 0.0,
    "contrast": 0.0,
    "jitter_prob": 0.0,
    "blur_prob": 0.0,
    "solarize_prob": 0.0,
    "rotate": 0.0,
  }
  c.method = {
    "name": "cxrjax.methods.mae",
    "mask_ratio": 0.75,
    "norm_pixels": True,
    "decoder_width": 512,
    "decoder_depth": 8,
    "decoder_heads": 16,
  }
  c.optimizer.options.b2 = 0.95
  c.optimizer.clip = 0.0
  c.optimizer.lr_scale = (("encoder/pos", 0.0),)
  c.optimizer.lr = {"start": 1.5e-4, "end": 0.0, "warmup": "40 epochs"}
  c.optimizer.lr.peak = "next"  # a warm-up of N steps has i / N at step i, as their code
  c.optimizer.weight_decay = {"start": 0.05, "end": 0.05}
  return presets.apply(c, arg, demo=DEMO, small=SMALL, tiny=TINY)
