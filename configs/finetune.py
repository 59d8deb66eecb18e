"""Fine-tuning: an encoder, pretrained or not, learns to classify from few labels or many.

    python -m cxrjax.main --config=configs/finetune.py            # phantoms, from scratch, minutes
    python -m cxrjax.main --config="configs/finetune.py:init=runs/dino,subset=10 %"
    python -m cxrjax.main --config=configs/finetune.py:small,data=folder:DIR,init=runs/dino
    python -m cxrjax.main --config=configs/finetune.py:paper,init=deit_small.safetensors
    python -m cxrjax.main --config=configs/finetune.py:tiny       # four steps, for tests

`init=` is the workdir of any finished run, whose network is taken with it, or a file of weights for
the network of `model=`. Without it training starts from scratch: the first command then gets a
test AUROC of 0.877 (0.861-0.891), where thumbnails have 0.919 (0.906-0.931); from
`configs/dino.py:duration=80 epochs,batch_size=64,lr=0.016,momentum_end=1.0` it is 0.955 (mean of
two seeds, 2026-11-21; a minute each).

It learns from `split`, judges itself on `val` as it goes and keeps the checkpoint with the best
`score`; temperature and thresholds are chosen on `val` too. The test split is looked at once, at
the end, with that checkpoint; `site=tfds:other` judges it on another set as well. `subset="10 %"`
takes part of the labels that are learnt from (not of `val`); those of smaller shares lie in larger
ones, and `split_seed=1` draws others. Runs over all shares: `configs/label_efficiency.py`.

With few labels and many images `configs/mean_teacher.py` and `configs/bke.py` learn from images
without labels as well.

After the colon stand `key=value` pairs over the options of `cxrjax/core/finetuning.py` and
`cxrjax/core/experiment.py`; every key of the config is a flag as well, `--config.a.b=value`.
"""

from ml_collections import ConfigDict

from cxrjax.core import experiment, finetuning


def get_config(arg: str = "") -> ConfigDict:
  o = experiment.parse(arg, finetuning.DEMO, small=finetuning.SMALL, paper=finetuning.PAPER,
                       strong=finetuning.STRONG, tiny=finetuning.TINY)
  return finetuning.base(o, "classify")
