"""Mean teacher: fine-tuning from few labels and many images, by agreeing with a moving average.

    python -m cxrjax.main --config=configs/mean_teacher.py        # phantoms, 16 labels per class
    python -m cxrjax.main --config="configs/mean_teacher.py:init=runs/dino,labelled=10 %"
    python -m cxrjax.main --config=configs/mean_teacher.py:small,data=folder:DIR,init=runs/dino
    python -m cxrjax.main --config=configs/mean_teacher.py:paper,init=runs/moco
    python -m cxrjax.main --config=configs/mean_teacher.py:tiny   # four steps, for tests

`labelled="10 %"` keeps the labels that `configs/finetune.py` learns from with `subset="10 %"`, and
the other images without theirs; `labelled_share` of every batch is labelled. Everything else, above
all what validates and tests, is as in `configs/finetune.py`.

Tarvainen and Valpola 2017 (arXiv 1703.01780) and their code: weight 100 of the mean squared
difference against a mean over labelled images (they write 100 times the labelled share against a
mean over all), which rises over the first quarter of the training, and momentum 0.999. The second
stage of S2MTS2 is this after contrastive pretraining (Liu et al. 2021, arXiv 2103.03629).

On phantoms with 16 labels per class, AUROC of 2,048 test images with seeds 0, 1 and 2 (of labels
and network; CPU, 2026-11-21), the configs' demos, from
scratch with --config.optimizer.layer_decay=0.75:

    from scratch          fine-tuning 0.850 0.805 0.804    this 0.842 0.831 0.847
    the same, averaged    fine-tuning 0.846 0.804 0.800    (momentum=0.99: not the average alone)
    from SimCLR's demo    fine-tuning 0.944 0.947 0.941    this 0.955 0.959 0.957

A weight of 50 did worse than 10 (one seed, validation).
"""

from ml_collections import ConfigDict

from cxrjax.config import finetuning, recipe

DEMO = {
  **finetuning.DEMO,
  **finetuning.UNLABELLED,
  "momentum": 0.99,  # of the teacher
  "consistency": 10.0,  # weight of teacher's and student's difference
  "ramp": "25 %",  # it rises for so long
}
SMALL = {**finetuning.SMALL, "labelled": "10 %"}
PAPER = {**finetuning.PAPER, "labelled": "10 %", "momentum": 0.999, "consistency": 100.0}


def get_config(arg: str = "") -> ConfigDict:
  o = recipe.parse(arg, DEMO, small=SMALL, paper=PAPER, tiny=finetuning.TINY)
  config = finetuning.base(
    o,
    "mean_teacher",
    consistency={"kind": "sigmoid", "start": 0.0, "end": o.consistency, "warmup": o.ramp},
  )
  config.views.global_crops = 2
  return config
