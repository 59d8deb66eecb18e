"""PIRL rotation pretraining (Misra, van der Maaten 2019, arXiv 1912.01991), judged by kNN, probe.

    python -m cxrjax.main --config=configs/pirl_rotation.py       # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/pirl_rotation.py:small,data=folder:PATH,split=all
    python -m cxrjax.main --config=configs/pirl_rotation.py:paper # ResNet-50 with SGD, Kermany
    python -m cxrjax.main --config=configs/pirl_rotation.py:paper,model=S,optimizer=adamw,lr=5e-4
    python -m cxrjax.main --config=configs/pirl_rotation.py:tiny  # four steps, for tests

`:paper` has the values for puzzles (see `configs/pirl_jigsaw.py`); the authors published none for
rotations. The turned view is a crop like the other one; its head is a linear map to 128 too.
"""

from ml_collections import ConfigDict

from cxrjax.config import presets, recipe

DEMO = {
  "lr": 0.004,
  "views.global_scale": (0.4, 1.0),
  "views.brightness": 0.5,
  "views.contrast": 0.5,
  "views.blur_prob": 0.5,
  "views.blur_sigma": (0.1, 2.8),
  "method.dim": 64,
  "method.batch_norm": True,  # better than the paper's linear heads on phantoms
}
SMALL = {
  "duration": "40 epochs",
  "eval_every": "5 epochs",
  "views.global_scale": (0.2, 1.0),
  "views.brightness": 0.4,
  "views.contrast": 0.4,
  "views.blur_prob": 0.0,
  "method.dim": 128,
}
TINY = {"method.dim": 16}


def get_config(arg: str = "") -> ConfigDict:
  c = recipe.pretraining()
  c.duration = "800 epochs"
  c.model = recipe.network(c, "resnet50")
  c.views = {
    "name": "cxrjax.views.pretext.Rotation",
    **recipe.pixels(c),
    "global_scale": (0.08, 1.0),
    "ratio": (3 / 4, 4 / 3),
    "flip": 0.5,
    "brightness": 0.4,
    "contrast": 0.4,
    "jitter_prob": 1.0,
    "blur_prob": 0.0,
    "blur_sigma": (0.1, 2.8),
    "blur_size": 224,
    "solarize_prob": 0.0,
    "solarize_threshold": 0.5,
    "rotate": 0.0,
  }
  c.method = {
    "name": "cxrjax.methods.pirl",
    "task": "rotation",
    "dim": 128,
    "batch_norm": False,  # of the embeddings
    "temperature": 0.07,
    "negatives": 32000,  # at most; fewer where there are fewer other images
    "momentum": 0.5,  # of the memory bank
    "pretext_weight": 0.5,
  }
  recipe.set_optimizer(c, "sgd")
  c.optimizer.lr = {"start": 0.03, "end": 3e-5, "warmup": "0 epochs", "peak": "last"}
  c.optimizer.weight_decay = {"start": 1e-4, "end": 1e-4}
  return presets.apply(c, arg, demo=DEMO, small=SMALL, tiny=TINY)
