"""Where finished networks look, and how much of it is lung: maps, lung scores, runs side by side.

    python -m cxrjax.main --config=configs/explain.py:runs=runs/finetune
    python -m cxrjax.main --config=configs/explain.py:runs=honest=runs/a+shortcut=runs/b
    python -m cxrjax.main --config=configs/explain.py:runs=runs/a,data=folder:PATH,masks=runs/lungs
    python -m cxrjax.main --config=configs/explain.py:runs=runs/dino,methods=attention+rollout

Runs are workdirs of finished runs, classifiers or pretrained encoders; the first is what the others
are held against. All see the same images: by default those that judged the first run. A
pretrained encoder has no classes; a linear probe on its features, fitted to labelled training
images of the same data, stands in for them.

Methods: `attention` of the last block, `rollout` (transformers), `gradcam`, `gradcam++`,
`occlusion`. Lung scores need lung masks: those of the data, or, where it has none, those that a
finished run of `configs/segment.py` draws (`masks=WORKDIR`), which the page then says.

Writes `report.html`, `maps/*.png` (maps over the radiographs shown), `arrays/*.npz` (the maps of
all images), `scores.csv` (of every image) and `run.json`. As a check of the maps themselves every
map is compared with that of the same network with random weights (Adebayo et al. 2018): a rank
correlation near 1 says that a map does not depend on what was learnt.
"""

from ml_collections import ConfigDict

from cxrjax.core.args import parse_arg
from cxrjax.core.experiment import source_arguments

OPTIONS = {
  "runs": "",         # NAME=WORKDIR+NAME=WORKDIR, or workdirs alone
  "data": "",         # a source; by default the one that judged the first run
  "split": "",        # of it; by default the test split
  "manual_dir": "",   # where tfds: finds archives to prepare a set from, on first use
  "methods": "",      # NAME+NAME; by default all that every run has, but occlusion
  "masks": "",        # a finished segmentation run, for images without a lung mask
  "images": 256,      # most that are scored, at even steps through the split
  "shown": 6,         # that are drawn
  "target": "",       # the class that is explained; by default each image's predicted one
  "tap": "",          # whose maps class activation maps weight, e.g. stage:2; by default the last
  "tiny": False,      # few images, for tests
}


def get_config(arg: str = "") -> ConfigDict:
  arg, of_source = source_arguments(arg)
  o = ConfigDict(parse_arg(arg, **OPTIONS))
  if o.manual_dir:
    of_source = {"manual_dir": o.manual_dir, **of_source}
  config = ConfigDict()
  config.task = "cxrjax.tasks.explain"
  config.runs = o.runs.replace("+", ",")
  config.data = {"source": o.data, "split": o.split, "options": of_source, "masks": o.masks,
                 "cache_dir": ""}
  config.methods = o.methods
  config.images = 8 if o.tiny else o.images
  config.shown = 2 if o.tiny else o.shown
  config.target = o.target
  config.tap = o.tap
  config.probe_images = 1000  # training images that a probe is fitted to, at most
  config.seed = 0             # of the random weights
  return config
