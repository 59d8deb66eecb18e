"""Mean teacher: fine-tuning from few labels and many images, by agreeing with a moving average.

    python -m cxrjax.main --config=configs/mean_teacher.py        # phantoms, 16 labels per class
    python -m cxrjax.main --config="configs/mean_teacher.py:init=runs/dino,data.labelled=10 %"
    python -m cxrjax.main --config=configs/mean_teacher.py:small,data=folder:DIR,init=runs/dino
    python -m cxrjax.main --config=configs/mean_teacher.py:paper,init=runs/moco
    python -m cxrjax.main --config=configs/mean_teacher.py:tiny   # four steps, for tests

`data.labelled=10 %` keeps the labels that `configs/finetune.py` learns from with `subset=10 %`, and
the other images without theirs. Everything else, above all what validates and tests, is as there.
Tarvainen and Valpola 2017 (arXiv 1703.01780) and their code: weight 100 of the mean squared
difference against a mean over labelled images (they write 100 times the labelled share against a
mean over all), which rises over the first quarter of the training, and momentum 0.999. The second
stage of S2MTS2 is this after contrastive pretraining (Liu et al. 2021, arXiv 2103.03629).
"""

from ml_collections import ConfigDict

from cxrjax.config import finetuning, presets

DEMO = {**finetuning.UNLABELLED, "method.momentum": 0.99, "method.consistency.end": 10.0}
SMALL = {"data.labelled": "10 %"}


def get_config(arg: str = "") -> ConfigDict:
  c = finetuning.supervised("mean_teacher", labelled=True)
  c.views.global_crops = 2
  c.method.momentum = 0.999  # of the teacher
  # Weight of teacher's and student's difference.
  c.method.consistency = {"kind": "sigmoid", "start": 0.0, "end": 100.0, "warmup": "25 %"}
  presets.apply(
    c, arg, shared=finetuning.PRESETS, scratch=finetuning.SCRATCH, demo=DEMO, small=SMALL
  )
  return finetuning.with_folds(c)
