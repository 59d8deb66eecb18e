"""SimCLR pretraining (Chen et al. 2020, arXiv 2002.05709), judged by kNN and linear probe.

    python -m cxrjax.main --config=configs/simclr.py              # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/simclr.py:small,data=folder:PATH,split=all
    python -m cxrjax.main --config=configs/simclr.py:paper        # ResNet-50 with LARS, Kermany
    python -m cxrjax.main --config=configs/simclr.py:paper,model=S,optimizer=adamw,lr=5e-4
    python -m cxrjax.main --config=configs/simclr.py:tiny         # four steps, for tests

`:paper` has the paper's values, but batches of 256 where it has 4096: negatives must fit the
memory, and few radiographs make few such batches (`batch_size=4096` where both are there). At 256
images tau 0.2 and a head of 4096-512 are what worked elsewhere (solo-learn).
"""

from ml_collections import ConfigDict

from cxrjax.config import presets, recipe

DEMO = {**recipe.TWO_VIEWS, "method.hidden": 256, "method.dim": 64, "method.temperature": 0.2}
SMALL = {**recipe.TWO_VIEWS_SMALL, "method.hidden": 512, "method.dim": 128}
PAPER = {"model.zero_init": True}  # as the authors' code
TINY = {"method.hidden": 32, "method.dim": 16}


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
    "brightness": 0.8,
    "contrast": 0.8,
    "jitter_prob": 0.8,
    "blur_prob": (0.5, 0.5, 0.0),
    "blur_sigma": (0.1, 2.0),
    "blur_size": 224,
    "solarize_prob": (0.0, 0.0, 0.0),
    "solarize_threshold": 0.5,
    "rotate": 0.0,
  }
  c.method = {
    "name": "cxrjax.methods.simclr",
    "hidden": 2048,
    "dim": 128,
    "head_layers": 2,
    "batch_norm": True,
    "temperature": 0.1,
  }
  recipe.set_optimizer(c, "lars")
  c.optimizer.lr.update(start=0.3, end=0.0, peak="next")  # i / N at step i of N, as their code
  c.optimizer.weight_decay = {"start": 1e-6, "end": 1e-6}  # the authors' later code: 1e-4
  return presets.apply(c, arg, demo=DEMO, small=SMALL, paper=PAPER, tiny=TINY)
