"""Fine-tuning: an encoder, pretrained or not, learns to classify from few labels or many.

    python -m cxrjax.main --config=configs/finetune.py            # 1,600 films, scratch, a minute
    python -m cxrjax.main --config="configs/finetune.py:init=runs/dino,subset=10 %"
    python -m cxrjax.main --config=configs/finetune.py:small,data=folder:DIR,init=runs/dino
    python -m cxrjax.main --config=configs/finetune.py:strong,data=folder:DIR
    python -m cxrjax.main --config=configs/finetune.py:paper,init=deit_small.safetensors
    python -m cxrjax.main --config=configs/finetune.py:tiny       # four steps, for tests

`init=` is the workdir of any finished run, whose network is taken with it, or a file of weights for
the network of `model=`. Without it training starts from scratch: the first command then gets a
test AUROC of 0.908 (0.873-0.934) on 400 radiographs, where thumbnails have 0.895 (0.855-0.925);
with `init=` the run of `configs/dino.py` it is 0.923 (0.890-0.947) (seed 0, two cores of a Xeon,
2026-11-29; 50 s each). With `data=phantom` it is 0.877 (0.861-0.891) from scratch, and 0.955 from
`configs/dino.py:data=phantom,duration=80 epochs,batch_size=64,lr=0.016,momentum_end=1.0` (mean of
two seeds, 2026-11-21); thumbnails have 0.919 (0.906-0.931) there.

`strong` is a recipe from scratch for real radiographs at 128 px: crops from 8 % of the image on,
other exposures, mixup, averaged weights, and predictions averaged over views.

It learns from `split`, judges itself on `val` as it goes and keeps the checkpoint with the best
`score`; temperature and thresholds are chosen on `val` too. The test split is looked at once, at
the end, with that checkpoint; `site=tfds:other` judges it on another set as well. `subset="10 %"`
takes part of the labels that are learnt from (not of `val`); those of smaller shares lie in larger
ones, and `split_seed=1` draws others. Runs over all shares: `configs/label_efficiency.py`.

With few labels and many images `configs/mean_teacher.py` and `configs/bke.py` learn from images
without labels as well.

After the colon stand `key=value` pairs over the options of `cxrjax/config/finetuning.py` and
`cxrjax/config/recipe.py`; every key of the config is a flag as well, `--config.a.b=value`.
"""

from ml_collections import ConfigDict

from cxrjax.config import finetuning, recipe

MINI = {**recipe.MINI, "split": "train", "val": "val"}


def get_config(arg: str = "") -> ConfigDict:
  o = recipe.parse(
    arg,
    {**finetuning.DEMO, "data": "mini"},
    mini=MINI,
    small=finetuning.SMALL,
    paper=finetuning.PAPER,
    strong=finetuning.STRONG,
    tiny=finetuning.TINY,
  )
  return finetuning.base(o, "classify")
