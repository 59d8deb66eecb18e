"""Where finished networks look, and how much of it is lung: maps, lung scores, runs side by side.

    python -m cxrjax.main --config=configs/explain.py:runs=runs/finetune
    python -m cxrjax.main --config=configs/explain.py:runs=honest=runs/a+shortcut=runs/b
    python -m cxrjax.main --config=configs/explain.py:runs=runs/a,data.masks=zoo:lungs
    python -m cxrjax.main --config=configs/explain.py:runs=runs/dino,methods=attention+rollout

Runs are workdirs of finished runs, classifiers or pretrained encoders (a linear probe stands in for
their classes); the first is what the others are held against. All see the same images: by default
those that judged the first. Lung scores need lung masks, of the data or of a segmentation run.
Writes `report.html`, `maps/*.png`, `arrays/*.npz`, `scores.csv` and `run.json`. As a check every
map is compared with that of the same network with random weights (Adebayo et al. 2018): a rank
correlation near 1 says that a map does not depend on what was learnt. Measured: docs/results.md.
"""

from ml_collections import ConfigDict

from cxrjax.config import presets

TINY = {"images": 8, "shown": 2}


def get_config(arg: str = "") -> ConfigDict:
  c = ConfigDict()
  c.task = "cxrjax.tasks.explain"
  c.runs = ""  # NAME=WORKDIR+NAME=WORKDIR, or workdirs alone
  c.data = {
    "source": "",  # by default the one that judged the first run
    "split": "",  # of it; by default the test split
    "options": {},
    "masks": "",  # a finished segmentation run, for images without a lung mask
    "cache_dir": "",
  }
  # attention (of the last block), rollout (transformers), gradcam, gradcam++, occlusion, as
  # NAME+NAME; by default all that every run has, but occlusion
  c.methods = ""
  c.images = 256  # most that are scored, at even steps through the split
  c.shown = 6  # that are drawn
  c.target = ""  # the class that is explained; by default each image's predicted one
  c.tap = ""  # whose maps class activation maps weight, e.g. stage:2; by default the last
  c.probe_images = 1000  # training images that a probe is fitted to, at most
  c.seed = 0  # of the random weights
  presets.apply(c, arg, shared={}, tiny=TINY)
  c.runs = c.runs.replace("+", ",")
  return c
