"""BYOL pretraining (Grill et al. 2020, arXiv 2006.07733), judged by kNN and linear probe.

    python -m cxrjax.main --config=configs/byol.py                # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/byol.py:small,data=folder:PATH,split=all
    python -m cxrjax.main --config=configs/byol.py:paper          # ResNet-50 with LARS, Kermany
    python -m cxrjax.main --config=configs/byol.py:paper,model=S,optimizer=adamw,lr=5e-4
    python -m cxrjax.main --config=configs/byol.py:tiny           # four steps, for tests

The first ends with a kNN (k = 20) AUROC of 0.889 (0.874-0.903); the random encoder's is 0.739, the
thumbnail floor 0.923 (seed 0, 2026-11-21). It took 4 min 10 s on two CPU cores that a dozen other
processes shared.

`:paper` has the paper's values for 300 epochs: ResNet-50, heads of 4096-256 with batch norm, LARS
with 0.3 for 256 images and weight decay 1e-6, momentum 0.99 to 1 (in 1000 epochs: `lr=0.2,
weight_decay=1.5e-6,weight_decay_end=1.5e-6,momentum=0.996`), crops from 8 %, views that differ in
blur and solarisation. Its batches are 256 where the paper has 4096, of which few radiographs make
few; at 256 images, others (solo-learn) use LARS with 0.5 and a predictor of 8192.

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
}
SMALL = {
  **recipe.TWO_VIEWS_SMALL,
  "hidden": 512,
  "dim": 128,
  "predictor_hidden": 512,
  "momentum": 0.99,
}
PAPER = {
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
    "name": "cxrjax.methods.byol",
    "hidden": o.hidden,
    "dim": o.dim,
    "head_layers": o.head_layers,
    "predictor_hidden": o.predictor_hidden,
    "batch_norm": o.batch_norm,
    "momentum": {"start": o.momentum, "end": 1.0},
  }
  if o.paper:  # as the authors' code
    config.optimizer.lr.peak = "next"  # a warm-up of N steps has i / N at step i
    if "resnet" in config.model.name:
      config.model.zero_init = True
  return config
