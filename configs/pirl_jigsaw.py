"""PIRL jigsaw pretraining (Misra, van der Maaten 2019, arXiv 1912.01991), judged by kNN, probe.

    python -m cxrjax.main --config=configs/pirl_jigsaw.py         # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/pirl_jigsaw.py:small,data=folder:PATH,split=all
    python -m cxrjax.main --config=configs/pirl_jigsaw.py:paper   # ResNet-50 with SGD, Kermany
    python -m cxrjax.main --config=configs/pirl_jigsaw.py:paper,model=S,optimizer=adamw,lr=5e-4
    python -m cxrjax.main --config=configs/pirl_jigsaw.py:tiny    # four steps, for tests

`:paper` has the values of the paper and of the authors' code, but batches of 256 where they have
1024. Their random posterising, sharpening, solarising and stretching of two views of three are left
out. PIRL needs epochs more than images: a row of its bank is renewed once an epoch, and until the
network changes little between two visits it compares with what the network no longer says.
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
    "name": "cxrjax.views.pretext.Jigsaw",
    "local_scale": (0.6, 1.0),
    "local_share": 64 / 255,
    "local_size": 0,  # pixels per side of a puzzle patch; 0: from `patch_pixels`
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
    "task": "jigsaw",
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
  presets.apply(c, arg, demo=DEMO, small=SMALL, tiny=TINY)
  if not c.views.local_size:
    c.views.local_size = patch_pixels(c.views.global_size, c.model.get("patch_size", 8))
  return c


def patch_pixels(image_size: int, patch_size: int) -> int:
  """Side of a puzzle patch: 64 pixels for an image view of 224, rounded to whole ViT patches.

  It spans at least two ViT patches. A puzzle patch shows 64/255 of a crop's side whatever its
  resolution: one of 16 pixels beside an image view of 32 shows what one of 9 would, enlarged.
  """
  return patch_size * max(2, round(64 / 224 * image_size / patch_size))
