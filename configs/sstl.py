"""Self-supervised transfer learning (Li et al. 2022, arXiv 2212.09276): weights, Cross, labels.

    python -m cxrjax.main --config=configs/sstl.py                # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/sstl.py:small,manual_dir=DIR
    python -m cxrjax.main --config=configs/sstl.py:paper,manual_dir=DIR,weights=FILE
    python -m cxrjax.main --config=configs/sstl.py:tasks=byol,data=folder:DIR
    python -m cxrjax.main --config=configs/sstl.py:tiny           # for tests

`weights=` are ImageNet's (of a timm or torchvision ResNet-50 in `:paper`); Cross learns on from
them on the training images without labels, then the network is fine-tuned with all labels. The page
shows the fine-tuning from scratch, from the weights alone and after Cross. Without `weights=` Cross
starts from random ones. The first command takes 1.5 minutes on one CPU core and ends with a test
AUROC of 0.899 (0.884-0.912) after Cross, 0.875 from scratch (gain 0.024, 0.014-0.034; 2026-11-21).

The paper's are the scheme, the losses of `configs/cross.py` and the data, four classes of the
COVID-19 Radiography Database, of which it reports HM 0.985, AUC 0.999 and accuracy 0.953. Its
network, its epochs and its split were not to be had: ResNet-50, BYOL's values and a split by
near-duplicates are ours, and the database's classes come from different hospitals. The paper
compares Cross with BYOL, SimSiam, SimCLR, PIRL-jigsaw and PIRL-rotation: `tasks=byol` and so on.

For other options see `cxrjax/config/curricula.py`.
"""

from ml_collections import ConfigDict

from cxrjax.config import curricula, study_args

OWN = {**curricula.OWN, "tasks": "cross"}
REAL = {"data": "tfds:covid19_radiography"}
PRESETS = {"small": REAL, "paper": REAL, "tiny": {}}
DEMO = "duration=30 epochs"  # of Cross, on phantoms


def get_config(arg: str = "") -> ConfigDict:
  o, handed = study_args.parse(arg, OWN, PRESETS)
  more = "" if handed.presets else DEMO
  stages = curricula.without_labels(
    o, handed, [(name, more) for name in study_args.split_list(o.tasks)]
  )
  stages += curricula.with_labels(o, handed, "previous")
  return curricula.curriculum(o, __file__, stages)
