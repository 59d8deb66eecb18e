"""SimSiam pretraining (Chen and He 2020, arXiv 2011.10566), judged by kNN and linear probe.

    python -m cxrjax.main --config=configs/simsiam.py             # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/simsiam.py:small,data=folder:PATH,split=all
    python -m cxrjax.main --config=configs/simsiam.py:paper       # ResNet-50 with SGD, Kermany
    python -m cxrjax.main --config=configs/simsiam.py:paper,model=S,optimizer=adamw,lr=5e-4
    python -m cxrjax.main --config=configs/simsiam.py:tiny        # four steps, for tests

The first ends with a kNN (k = 20) AUROC of 0.920 (0.907-0.932); the random encoder's is 0.739, the
thumbnail floor 0.923 (seed 0, 2026-11-21), in about 4 min on two CPU cores that a dozen other
processes shared. Three learning rates were tried on the same phantom test images: with DINO's
(0.016) features collapse and end below the random encoder's (0.66); SGD with 0.2 ended a run of 20
epochs at 0.75, AdamW with 0.002 at 0.82.

`:paper` has the paper's values for 100 epochs: ResNet-50, a projector of 2048-2048-2048, a
predictor of 512-2048 whose learning rate is constant, SGD with 0.05 for 256 images, weight decay
1e-4, batches of 512 (256 do as well, the paper finds), no warm-up.

After the colon stand `key=value` pairs over the options below and those of
`cxrjax/config/recipe.py`; every key of the config is a flag as well,
`--config.optimizer.lr.start=1e-3`.
"""

from ml_collections import ConfigDict

from cxrjax.config import recipe

DEMO = {
  **recipe.TWO_VIEWS,
  "hidden": 256,
  "dim": 256,
  "head_layers": 2,
  "predictor_hidden": 64,
  "batch_norm": True,
  "constant_predictor": True,  # leave the predictor's learning rate at its start
  "lr": 0.002,
}
SMALL = {**recipe.TWO_VIEWS_SMALL, "hidden": 512, "dim": 512, "predictor_hidden": 128, "lr": 2e-3}
PAPER = {
  "model": "resnet50",
  "global_scale": (0.2, 1.0),
  "jitter": 0.4,
  "jitter_prob": 0.8,
  "blur": 2.0,
  "hidden": 2048,
  "dim": 2048,
  "head_layers": 3,
  "predictor_hidden": 512,
  "optimizer": "sgd",
  "batch_size": 512,
  "duration": "100 epochs",
  "warmup": "0 epochs",
  "lr": 0.05,
  "lr_end": 0.0,
  "weight_decay": 1e-4,
  "weight_decay_end": 1e-4,
}
TINY = {"hidden": 32, "dim": 32, "predictor_hidden": 8}


def get_config(arg: str = "") -> ConfigDict:
  o = recipe.parse(arg, DEMO, small=SMALL, paper=PAPER, tiny=TINY)
  config = recipe.base(o)
  config.views = recipe.two_views(o)
  config.method = {
    "name": "cxrjax.methods.simsiam",
    "hidden": o.hidden,
    "dim": o.dim,
    "head_layers": o.head_layers,
    "predictor_hidden": o.predictor_hidden,
    "batch_norm": o.batch_norm,
  }
  if o.constant_predictor:
    config.optimizer.lr_constant = ("^predictor/",)
  if o.paper:  # as the authors' code
    config.optimizer.decay_vectors = True
    if "resnet" in config.model.name:
      config.model.zero_init = True
  return config
