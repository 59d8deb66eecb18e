"""BYOL pretraining (Grill et al. 2020, arXiv 2006.07733), judged by kNN and linear probe.

    python -m cxrjax.main --config=configs/byol.py                # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/byol.py:small,data=folder:PATH,split=all
    python -m cxrjax.main --config=configs/byol.py:paper          # ResNet-50 with LARS, Kermany
    python -m cxrjax.main --config=configs/byol.py:paper,model=S,optimizer=adamw,lr=5e-4
    python -m cxrjax.main --config=configs/byol.py:tiny           # four steps, for tests

`:paper` has the paper's values for 300 epochs; for 1000 they are
`lr=0.2,weight_decay=1.5e-6,method.momentum.start=0.996`. Its batches are 256 where the paper has
4096, of which few radiographs make few; at 256 images, others (solo-learn) use LARS with 0.5 and a
predictor of 8192.
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
PAPER = {"model.zero_init": True}  # as the authors' code
TINY = {"method.hidden": 32, "method.dim": 16, "method.predictor_hidden": 32}


def get_config(arg: str = "") -> ConfigDict:
  c = recipe.pretraining()
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
    "name": "cxrjax.methods.byol",
    "hidden": 4096,
    "dim": 256,
    "head_layers": 2,
    "predictor_hidden": 4096,
    "batch_norm": True,
    "momentum": {"start": 0.99, "end": 1.0},
  }
  recipe.set_optimizer(c, "lars")
  c.optimizer.lr.update(start=0.3, end=0.0, peak="next")  # i / N at step i of N, as their code
  c.optimizer.weight_decay = {"start": 1e-6, "end": 1e-6}
  return presets.apply(c, arg, demo=DEMO, small=SMALL, paper=PAPER, tiny=TINY)
