"""Fine-tuning: an encoder, pretrained or not, learns to classify from few labels or many.

    python -m cxrjax.main --config=configs/finetune.py            # 1,600 films, scratch, a minute
    python -m cxrjax.main --config="configs/finetune.py:init=runs/dino,subset=10 %"
    python -m cxrjax.main --config=configs/finetune.py:small,data=folder:DIR,init=runs/dino
    python -m cxrjax.main --config=configs/finetune.py:linear,init=runs/dino  # a linear probe
    python -m cxrjax.main --config=configs/finetune.py:strong,data=folder:DIR
    python -m cxrjax.main --config=configs/finetune.py:paper,init=deit_small.safetensors
    python -m cxrjax.main --config=configs/finetune.py:tiny       # four steps, for tests

`init=` is the workdir of any finished run, whose network is taken with it, or a file of weights for
the network of `model=`; without it training starts from scratch, for which `strong` is a recipe.
It learns from `split`, judges itself on `val` as it goes and keeps the checkpoint with the best
`checkpoint.score`; temperature and thresholds are chosen on `val` too. The test split is looked at
once, at the end, with that checkpoint; `site=tfds:other` judges it on another set as well.
`subset=10 %` takes part of the labels (not of `val`); those of smaller shares lie in larger ones,
and `data.split_seed=1` draws others. Runs over all shares: `configs/label_efficiency.py`.
"""

from ml_collections import ConfigDict

from cxrjax.config import finetuning, presets

DEMO = {"data": "mini"}
MINI = {"split": "train", "val": "val"}


def get_config(arg: str = "") -> ConfigDict:
  c = finetuning.supervised("classify")
  presets.apply(c, arg, shared=finetuning.PRESETS, scratch=finetuning.SCRATCH, demo=DEMO, mini=MINI)
  return finetuning.with_folds(c)
