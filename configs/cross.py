"""Cross pretraining (Li et al. 2022, arXiv 2212.09276), judged by kNN and linear probe.

    python -m cxrjax.main --config=configs/cross.py               # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/cross.py:small,data=folder:PATH,split=all
    python -m cxrjax.main --config=configs/cross.py:paper         # ResNet-50, COVID-19 database
    python -m cxrjax.main --config=configs/cross.py:paper,model=S,optimizer=adamw,lr=5e-4
    python -m cxrjax.main --config=configs/cross.py:tiny          # four steps, for tests

The first ends with a kNN (k = 20) AUROC of 0.931 (0.919-0.942); the random encoder's is 0.739, the
thumbnail floor 0.923 (seed 0, 2026-11-21). It took 3 min 40 s on two CPU cores that a dozen other
processes shared.

`:paper` has the paper's data, its losses (cross-view and cross-model, 2 - 2 cos each) and BYOL's
values for all that its public record leaves open: ResNet-50, heads of 4096-256, LARS with 0.3 for
256 images, momentum 0.99 to 1, views; see `cxrjax/methods/cross.py` for what is read into the
losses. The paper starts from ImageNet's weights, this from random ones.

After the colon stand `key=value` pairs over the options below and those of
`cxrjax/config/recipe.py`; every key of the config is a flag as well,
`--config.optimizer.lr.start=1e-3`.
"""

from ml_collections import ConfigDict

from cxrjax.config import recipe

DEMO = {
  **recipe.TWO_VIEWS,
  "hidden": 256,
  "dim": 64,
  "head_layers": 2,
  "predictor_hidden": 256,
  "batch_norm": True,
  "momentum": 0.98,
  "view_weight": 1.0,  # of the cross-view loss
  "model_weight": 1.0,  # of the cross-model loss
}
SMALL = {
  **recipe.TWO_VIEWS_SMALL,
  "hidden": 512,
  "dim": 128,
  "predictor_hidden": 512,
  "momentum": 0.99,
}
PAPER = {
  "data": "tfds:covid19_radiography",
  "model": "resnet50",
  "global_scale": (0.08, 1.0),
  "jitter": 0.4,
  "jitter_prob": 0.8,
  "blur": 2.0,
  "blur_prob": (1.0, 0.1),
  "solarize": (0.0, 0.2),
  "hidden": 4096,
  "dim": 256,
  "predictor_hidden": 4096,
  "momentum": 0.99,
  "optimizer": "lars",
  "lr": 0.3,
  "lr_end": 0.0,
  "weight_decay": 1e-6,
  "weight_decay_end": 1e-6,
}
TINY = {"hidden": 32, "dim": 16, "predictor_hidden": 32}


def get_config(arg: str = "") -> ConfigDict:
  o = recipe.parse(arg, DEMO, small=SMALL, paper=PAPER, tiny=TINY)
  config = recipe.base(o)
  config.views = recipe.two_views(o)
  config.method = {
    "name": "cxrjax.methods.cross",
    "hidden": o.hidden,
    "dim": o.dim,
    "head_layers": o.head_layers,
    "predictor_hidden": o.predictor_hidden,
    "batch_norm": o.batch_norm,
    "momentum": {"start": o.momentum, "end": 1.0},
    "view_weight": o.view_weight,
    "model_weight": o.model_weight,
  }
  return config
