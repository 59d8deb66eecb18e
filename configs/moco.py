"""MoCo v3 and v2 pretraining (Chen et al. 2021 and 2020), judged by kNN and linear probe.

    python -m cxrjax.main --config=configs/moco.py                # v3, phantom radiographs, minutes
    python -m cxrjax.main --config=configs/moco.py:version=2      # v2, the same
    python -m cxrjax.main --config=configs/moco.py:small,data=folder:PATH,split=all
    python -m cxrjax.main --config=configs/moco.py:paper          # v3, ViT-S/16, Kermany
    python -m cxrjax.main --config=configs/moco.py:paper,model=resnet50             # v3
    python -m cxrjax.main --config=configs/moco.py:paper,version=2                  # ResNet-50
    python -m cxrjax.main --config=configs/moco.py:tiny           # four steps, for tests

The first needs two minutes of CPU time in all and ends with a kNN (k = 20) AUROC of 0.951
(0.941-0.960) on the phantom's test images with seed 0, the second one minute and 0.943
(0.932-0.952), the best of six recipes; the random encoder's is 0.739, a linear probe of thumbnails
has 0.923 and one of these features 0.963 and 0.959 (2026-11-21).

`:paper` has the values of arXiv 2104.02057 (v3; for ViTs AdamW with a frozen patch projection, for
ResNets LARS) or arXiv 2003.04297 (v2: SGD, a queue of 65,536), where v3's batches are 256 instead
of 4096; `batch_size=1024` costs little, the paper finds.

After the colon stand `key=value` pairs over the options below and those of
`cxrjax/config/recipe.py`; every key of the config is a flag as well,
`--config.optimizer.lr.start=1e-3`.
"""

import re

from ml_collections import ConfigDict

from cxrjax.config import recipe
from cxrjax.models.vit import VARIANTS

DEMO = {
  "version": 3,
  **recipe.TWO_VIEWS,
  "hidden": 256,
  "dim": 64,
  "head_layers": 2,
  "batch_norm": True,
  "predictor_norm": True,
  "temperature": 0.2,
  "momentum": 0.99,
  "momentum_end": 1.0,
  "queue": 512,  # version 2: keys
  "bn_groups": 2,  # version 2
  "frozen_patches": False,  # a ViT's patch projection stays as it starts; fixed positions
}
DEMO2 = {"temperature": 0.1, "momentum": 0.95, "momentum_end": 0.95, "lr": 0.004}
SMALL = {**recipe.TWO_VIEWS_SMALL, "hidden": 512, "dim": 128}
SMALL2 = {**SMALL, "momentum": 0.99, "momentum_end": 0.99, "queue": 2048}
PAPER3 = {
  "jitter": 0.4,
  "jitter_prob": 0.8,
  "blur": 2.0,
  "blur_prob": (1.0, 0.1),
  "solarize": (0.0, 0.2),
  "hidden": 4096,
  "dim": 256,
  "lr_end": 0.0,
}
PAPER3_VIT = {
  **PAPER3,
  "global_scale": (0.08, 1.0),
  "head_layers": 3,
  "frozen_patches": True,
  "initial": "xavier",
  "drop_path": 0.0,
  "warmup": "40 epochs",
  "lr": 1.5e-4,
  "weight_decay": 0.1,
  "weight_decay_end": 0.1,
}
PAPER3_CNN = {
  **PAPER3,
  "global_scale": (0.2, 1.0),
  "predictor_norm": False,
  "temperature": 1.0,
  "optimizer": "lars",
  "lr": 0.3,
  "weight_decay": 1.5e-6,
  "weight_decay_end": 1.5e-6,
}
PAPER2 = {
  "model": "resnet50",
  "global_scale": (0.2, 1.0),
  "jitter": 0.4,
  "jitter_prob": 0.8,
  "blur": 2.0,
  "hidden": 2048,
  "dim": 128,
  "batch_norm": False,
  "temperature": 0.2,
  "momentum": 0.999,
  "momentum_end": 0.999,
  "queue": 65536,
  "bn_groups": 8,
  "optimizer": "sgd",
  "duration": "200 epochs",
  "warmup": "0 epochs",
  "lr": 0.03,
  "lr_end": 0.0,
  "weight_decay": 1e-4,
  "weight_decay_end": 1e-4,
}
TINY = {"hidden": 32, "dim": 16, "queue": 16}


def get_config(arg: str = "") -> ConfigDict:
  second = re.search(r"\bversion=2\b", arg)
  convolutional = re.search(r"\bmodel=([a-z]+net|inception)", arg)
  paper = PAPER2 if second else PAPER3_CNN if convolutional else PAPER3_VIT
  o = recipe.parse(
    arg,
    {**DEMO, **(DEMO2 if second else {})},
    small=SMALL2 if second else SMALL,
    paper=paper,
    tiny=TINY,
  )
  config = recipe.base(o)
  config.views = recipe.two_views(o)
  config.method = {
    "name": "cxrjax.methods.moco",
    "version": o.version,
    "hidden": o.hidden,
    "dim": o.dim,
    "head_layers": o.head_layers,
    "batch_norm": o.batch_norm,
    "predictor_norm": o.predictor_norm,
    "temperature": o.temperature,
    "momentum": {"start": o.momentum, "end": o.momentum_end},
    "queue": o.queue,
    "bn_groups": o.bn_groups,
  }
  if o.frozen_patches and o.model in VARIANTS:
    config.model.positions = "sincos"
    config.optimizer.lr_scale = (("encoder/(patch|pos)", 0.0),)
    config.optimizer.clip = 0.0
    if o.model == "S":
      config.model.heads = 12  # the authors'; DeiT's ViT-S has 6
  if o.paper:  # as the authors' code
    config.optimizer.decay_vectors = o.optimizer != "lars"
    if o.version == 3:
      config.optimizer.lr.peak = "next"  # a warm-up of N steps has i / N at step i
      if config.model.name.endswith(".vit"):
        config.model.token_std = 1e-6
      elif "resnet" in config.model.name:
        config.model.zero_init = True
  return config
