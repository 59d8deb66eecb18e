"""RGMIM pretraining (Li et al. 2022, arXiv 2211.00313): MAE whose masks are drawn in the lungs.

    python -m cxrjax.main --config=configs/rgmim.py               # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/rgmim.py:small,data=tfds:nlm_tb/shenzhen,split=all
    python -m cxrjax.main --config=configs/rgmim.py:data=mini,data.masks=zoo:lungs
    python -m cxrjax.main --config=configs/rgmim.py:paper         # ViT-B/16, COVID-19 Radiography
    python -m cxrjax.main --config=configs/rgmim.py:tiny          # four steps, for tests

Data that have lung masks: phantom, covid19_radiography, jsrt, nlm_tb. For others a network of the
package, or your own run of `configs/segment.py`, predicts them once, when the images are loaded.
The paper's ratios were not to be had: `mask_ratio` and the rest of `:paper` are MAE's,
`lung_ratio` is ours.
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
  c.data.source = "tfds:covid19_radiography"
  c.data.masks = "own"  # the data's lung masks; or a segmentation run's workdir
  c.model = recipe.network(c, "B")
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
    "name": "cxrjax.methods.rgmim",
    "mask_ratio": 0.75,  # of all patches
    "lung_ratio": 0.9,  # of those in the lungs, at most
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
