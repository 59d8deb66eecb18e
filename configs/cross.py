"""Cross pretraining (Li et al. 2022, arXiv 2212.09276), judged by kNN and linear probe.

    python -m cxrjax.main --config=configs/cross.py               # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/cross.py:small,data=folder:PATH,split=all
    python -m cxrjax.main --config=configs/cross.py:paper         # ResNet-50, COVID-19 database
    python -m cxrjax.main --config=configs/cross.py:paper,model=S,optimizer=adamw,lr=5e-4
    python -m cxrjax.main --config=configs/cross.py:tiny          # four steps, for tests

`:paper` has the paper's data, its losses (cross-view and cross-model, 2 - 2 cos each) and BYOL's
values for all that its public record leaves open; see `cxrjax/methods/cross.py` for what is read
into the losses. The paper starts from ImageNet's weights, this from random ones.
"""

from ml_collections import ConfigDict

from cxrjax.config import presets, recipe

DEMO = {
  **recipe.TWO_VIEWS,
  "method.hidden": 256,
  "method.dim": 64,
  "method.predictor_hidden": 256,
  "method.momentum.start": 0.98,
}
SMALL = {
  **recipe.TWO_VIEWS_SMALL,
  "method.hidden": 512,
  "method.dim": 128,
  "method.predictor_hidden": 512,
  "method.momentum.start": 0.99,
}
TINY = {"method.hidden": 32, "method.dim": 16, "method.predictor_hidden": 32}


def get_config(arg: str = "") -> ConfigDict:
  c = recipe.pretraining()
  c.data.source = "tfds:covid19_radiography"
  c.model = recipe.network(c, "resnet50")
  c.views = {
    "name": "cxrjax.views.multicrop",
    **recipe.pixels(c),
    "global_crops": 2,
    "global_scale": (0.08, 1.0),
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
    "name": "cxrjax.methods.cross",
    "hidden": 4096,
    "dim": 256,
    "head_layers": 2,
    "predictor_hidden": 4096,
    "batch_norm": True,
    "momentum": {"start": 0.99, "end": 1.0},
    "view_weight": 1.0,  # of the cross-view loss
    "model_weight": 1.0,  # of the cross-model loss
  }
  recipe.set_optimizer(c, "lars")
  c.optimizer.lr.update(start=0.3, end=0.0)
  c.optimizer.weight_decay = {"start": 1e-6, "end": 1e-6}
  return presets.apply(c, arg, demo=DEMO, small=SMALL, tiny=TINY)
