"""DINO-CXR (Shakouri et al. 2023, arXiv 2308.00475): DINO without small crops, then fine-tuning.

    python -m cxrjax.main --config=configs/dino_cxr.py            # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/dino_cxr.py:small,manual_dir=DIR
    python -m cxrjax.main --config=configs/dino_cxr.py:paper,manual_dir=DIR  # ViTAEv2-S, 224 px
    python -m cxrjax.main --config=configs/dino_cxr.py:paper,data=tfds:covidgr,manual_dir=DIR
    python -m cxrjax.main --config=configs/dino_cxr.py:tiny       # for tests

DINO with two large crops learns from unlabelled radiographs; the network is then fine-tuned with
the labels of each source of `data=`. The page shows it from scratch as well.

The paper's are DINO, the augmentation that is cheaper than small crops, the backbone ViTAEv2, some
13,000 radiographs without labels, and accuracies of 0.9565 on Kermany's set and 0.7647 on COVIDGR.
Its crops, rates, epochs and splits were not to be had: DINO's values for small batches are ours,
and the test sets are the published ones. 0.9565 is no share of Kermany's 624 test images.

For other options see `cxrjax/config/curricula.py`.
"""

from ml_collections import ConfigDict

from cxrjax.config import curricula, study_args

OWN = curricula.OWN
REAL = {"data": "tfds:chest_xray_pneumonia", "unlabelled": curricula.UNLABELLED}
PRESETS = {"small": REAL, "paper": REAL, "tiny": {}}
DEMO = "views.local_crops=0,duration=40 epochs"
PAPER = "views.local_crops=0,views.solarize_prob=(0.0,0.0,0.0),model=vitae"


def get_config(arg: str = "") -> ConfigDict:
  o, handed = study_args.parse(arg, OWN, PRESETS)
  more = PAPER if "paper" in handed.presets else "views.local_crops=0" if handed.presets else DEMO
  stages = curricula.without_labels(o, handed, [("dino", more)])
  stages += curricula.with_labels(o, handed, "previous")
  return curricula.curriculum(o, __file__, stages)
