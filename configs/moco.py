"""MoCo v3 and v2 pretraining (Chen et al. 2021 and 2020), judged by kNN and linear probe.

    python -m cxrjax.main --config=configs/moco.py                # v3, phantom radiographs, minutes
    python -m cxrjax.main --config=configs/moco.py:method.version=2 # v2, the same
    python -m cxrjax.main --config=configs/moco.py:small,data=folder:PATH,split=all
    python -m cxrjax.main --config=configs/moco.py:paper          # v3, ViT-S/16, Kermany
    python -m cxrjax.main --config=configs/moco.py:paper,model=resnet50 # v3, with LARS
    python -m cxrjax.main --config=configs/moco.py:paper,method.version=2 # ResNet-50
    python -m cxrjax.main --config=configs/moco.py:tiny           # four steps, for tests

`:paper` has the values of arXiv 2104.02057 (v3; for ViTs AdamW with a frozen patch projection, for
ResNets LARS) or arXiv 2003.04297 (v2: SGD, a queue of 65,536), where v3's batches are 256 instead
of 4096; `batch_size=1024` costs little, the paper finds.
"""

import re

from ml_collections import ConfigDict

from cxrjax.config import presets, recipe

DEMO = {
  **recipe.TWO_VIEWS,
  "model.positions": "normal",
  "optimizer.decay_vectors": False,
  "optimizer.lr_scale": (),
  "method.hidden": 256,
  "method.dim": 64,
  "method.head_layers": 2,
}
DEMO2 = {
  "lr": 0.004,
  "method.temperature": 0.1,
  "method.momentum.start": 0.95,
  "method.momentum.end": 0.95,
}
SMALL = {**recipe.TWO_VIEWS_SMALL, "method.hidden": 512, "method.dim": 128}
SMALL2 = {**SMALL, "method.momentum.start": 0.99, "method.momentum.end": 0.99, "method.queue": 2048}
PAPER_VIT = {"model.token_std": 1e-6, "optimizer.clip": 0.0}  # as the authors' code
PAPER_CNN = {
  "views.global_scale": (0.2, 1.0),
  "optimizer": "lars",
  "optimizer.lr_scale": (),
  "optimizer.decay_vectors": False,
  "optimizer.lr.start": 0.3,
  "optimizer.lr.warmup": "10 epochs",
  "weight_decay": 1.5e-6,
  "model.zero_init": True,
  "method.head_layers": 2,
  "method.predictor_norm": False,
  "method.temperature": 1.0,
}
PAPER2 = {
  "duration": "200 epochs",
  "model": "resnet50",
  "model.drop_path": 0.1,
  "model.initial": "normal",
  "model.positions": "normal",
  "views.global_scale": (0.2, 1.0),
  "views.blur_prob": (0.5, 0.5, 0.0),
  "views.solarize_prob": (0.0, 0.0, 0.0),
  "optimizer": "sgd",
  "optimizer.lr_scale": (),
  "optimizer.lr.start": 0.03,
  "optimizer.lr.warmup": "0 epochs",
  "optimizer.lr.peak": "last",
  "weight_decay": 1e-4,
  "method.hidden": 2048,
  "method.dim": 128,
  "method.head_layers": 2,
  "method.batch_norm": False,
  "method.momentum.start": 0.999,
  "method.momentum.end": 0.999,
  "method.queue": 65536,
  "method.bn_groups": 8,
}
TINY = {"method.hidden": 32, "method.dim": 16, "method.queue": 16}


def get_config(arg: str = "") -> ConfigDict:
  c = recipe.pretraining()
  c.model.update(positions="sincos", initial="xavier", drop_path=0.0)
  c.model.heads = 12  # the authors' ViT-S; DeiT's has 6
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
    "name": "cxrjax.methods.moco",
    "version": 3,
    "hidden": 4096,
    "dim": 256,
    "head_layers": 3,
    "batch_norm": True,
    "predictor_norm": True,
    "temperature": 0.2,
    "momentum": {"start": 0.99, "end": 1.0},
    "queue": 512,  # of keys, in version 2
    "bn_groups": 2,  # in version 2
  }
  c.optimizer.lr = {"start": 1.5e-4, "end": 0.0, "warmup": "40 epochs"}
  c.optimizer.lr.peak = "next"  # a warm-up of N steps has i / N at step i, as their code
  c.optimizer.lr_scale = (("encoder/(patch|pos)", 0.0),)  # a frozen projection
  c.optimizer.weight_decay = {"start": 0.1, "end": 0.1}
  c.optimizer.decay_vectors = True  # as their code
  second = re.search(r"\bmethod\.version=2\b", arg)
  convolutional = re.search(r"\bmodel=([a-z]+net|inception)", arg)
  return presets.apply(
    c,
    arg,
    demo={**DEMO, **(DEMO2 if second else {})},
    small=SMALL2 if second else SMALL,
    paper=PAPER2 if second else PAPER_CNN if convolutional else PAPER_VIT,
    tiny=TINY,
  )
