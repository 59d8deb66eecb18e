"""Batch knowledge ensembling: fine-tuning from few labels, and from images that look alike.

    python -m cxrjax.main --config=configs/bke.py                 # phantoms, 16 labels per class
    python -m cxrjax.main --config="configs/bke.py:init=runs/dino,data.labelled=10 %"
    python -m cxrjax.main --config=configs/bke.py:small,data=folder:DIR,init=runs/dino
    python -m cxrjax.main --config=configs/bke.py:paper,init=runs/simclr
    python -m cxrjax.main --config=configs/bke.py:tiny            # four steps, for tests

`data.labelled=10 %` keeps the labels that `configs/finetune.py` learns from with `subset=10 %`, and
the other images without theirs. Everything else, above all what validates and tests, is as there.
Li et al. 2022 (arXiv 2212.09281) fine-tune a pretrained network so; weights and temperature are
those of Ge et al. 2021 (arXiv 2104.13298). That images without labels take part is ours.
`configs/mean_teacher.py` does better with the same labels.
"""

from ml_collections import ConfigDict

from cxrjax.config import finetuning, presets

DEMO = finetuning.UNLABELLED
SMALL = {"data.labelled": "10 %"}


def get_config(arg: str = "") -> ConfigDict:
  c = finetuning.supervised("bke", labelled=True)
  c.method.update(
    weight=1.0,  # of the soft targets
    omega=0.5,  # weight of the other images in them
    temperature=4.0,
    affinity_temperature=1.0,  # lower, and only the images most alike count
  )
  presets.apply(
    c, arg, shared=finetuning.PRESETS, scratch=finetuning.SCRATCH, demo=DEMO, small=SMALL
  )
  return finetuning.with_folds(c)
