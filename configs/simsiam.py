"""SimSiam pretraining (Chen and He 2020, arXiv 2011.10566), judged by kNN and linear probe.

    python -m cxrjax.main --config=configs/simsiam.py             # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/simsiam.py:small,data=folder:PATH,split=all
    python -m cxrjax.main --config=configs/simsiam.py:paper       # ResNet-50 with SGD, Kermany
    python -m cxrjax.main --config=configs/simsiam.py:paper,model=S,optimizer=adamw,lr=5e-4
    python -m cxrjax.main --config=configs/simsiam.py:tiny        # four steps, for tests

`:paper` has the paper's values for 100 epochs and batches of 512 (256 do as well, it finds).
"""

from ml_collections import ConfigDict

from cxrjax.config import presets, recipe

DEMO = {
  **recipe.TWO_VIEWS,
  "lr": 0.002,  # with DINO's 0.016 features collapse
  "method.hidden": 256,
  "method.dim": 256,
  "method.head_layers": 2,
  "method.predictor_hidden": 64,
  "optimizer.decay_vectors": False,
}
SMALL = {
  **recipe.TWO_VIEWS_SMALL,
  "lr": 2e-3,
  "method.hidden": 512,
  "method.dim": 512,
  "method.predictor_hidden": 128,
}
PAPER = {"model.zero_init": True}  # as the authors' code
TINY = {"method.hidden": 32, "method.dim": 32, "method.predictor_hidden": 8}


def get_config(arg: str = "") -> ConfigDict:
  c = recipe.pretraining()
  c.batch_size = 512
  c.duration = "100 epochs"
  c.model = recipe.network(c, "resnet50")
  c.views = {
    "name": "cxrjax.views.multicrop",
    **recipe.pixels(c),
    "global_crops": 2,
    "global_scale": (0.2, 1.0),
    "local_crops": 0,
    "ratio": (3 / 4, 4 / 3),
    "flip": 0.5,
    "brightness": 0.4,
    "contrast": 0.4,
    "jitter_prob": 0.8,
    "blur_prob": (0.5, 0.5, 0.0),
    "blur_sigma": (0.1, 2.0),
    "blur_size": 224,
    "solarize_prob": (0.0, 0.0, 0.0),
    "solarize_threshold": 0.5,
    "rotate": 0.0,
  }
  c.method = {
    "name": "cxrjax.methods.simsiam",
    "hidden": 2048,
    "dim": 2048,
    "head_layers": 3,
    "predictor_hidden": 512,
    "batch_norm": True,
  }
  recipe.set_optimizer(c, "sgd")
  c.optimizer.lr.update(start=0.05, end=0.0, warmup="0 epochs")
  c.optimizer.weight_decay = {"start": 1e-4, "end": 1e-4}
  c.optimizer.decay_vectors = True  # as the authors' code
  c.optimizer.lr_constant = ("^predictor/",)
  return presets.apply(c, arg, demo=DEMO, small=SMALL, paper=PAPER, tiny=TINY)
