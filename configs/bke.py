"""Batch knowledge ensembling: fine-tuning from few labels, and from images that look alike.

    python -m cxrjax.main --config=configs/bke.py                 # phantoms, 16 labels per class
    python -m cxrjax.main --config="configs/bke.py:init=runs/dino,labelled=10 %"
    python -m cxrjax.main --config=configs/bke.py:small,data=folder:DIR,init=runs/dino
    python -m cxrjax.main --config=configs/bke.py:paper,init=runs/simclr
    python -m cxrjax.main --config=configs/bke.py:tiny            # four steps, for tests

`labelled="10 %"` keeps the labels that `configs/finetune.py` learns from with `subset="10 %"`, and
the other images without theirs; `labelled_share` of every batch is labelled. Everything else, above
all what validates and tests, is as in `configs/finetune.py`.

Li et al. 2022 (arXiv 2212.09281) fine-tune a pretrained network so; weights and temperature are
those of Ge et al. 2021 (arXiv 2104.13298). That images without labels take part is ours.

On phantoms with 16 labels per class it brings nothing. AUROC of 2,048 test images with seeds 0, 1
and 2 (of labels and network; CPU, 2026-11-21), the configs' demos, from
scratch with --config.optimizer.layer_decay=0.75:

    from scratch          fine-tuning 0.850 0.805 0.804    this 0.829 0.800 0.803
    from SimCLR's demo    fine-tuning 0.944 0.947 0.941    this 0.941 0.945 0.927

An affinity temperature of 0.1 did not help (one seed, validation). `configs/mean_teacher.py` does
better with the same labels.
"""

from ml_collections import ConfigDict

from cxrjax.config import finetuning, recipe

DEMO = {
  **finetuning.DEMO,
  **finetuning.UNLABELLED,
  "ensembling": 1.0,  # weight of the soft targets
  "omega": 0.5,  # weight of the other images in them
  "temperature": 4.0,
  "affinity_temperature": 1.0,  # lower, and only the images most alike count
}
SMALL = {**finetuning.SMALL, "labelled": "10 %"}
PAPER = {**finetuning.PAPER, "labelled": "10 %"}


def get_config(arg: str = "") -> ConfigDict:
  o = recipe.parse(arg, DEMO, small=SMALL, paper=PAPER, tiny=finetuning.TINY)
  return finetuning.base(
    o,
    "bke",
    weight=o.ensembling,
    omega=o.omega,
    temperature=o.temperature,
    affinity_temperature=o.affinity_temperature,
  )
