"""Label efficiency: fine-tunes from several starts with 1 % to 100 % of the labels, and draws it.

    python -m cxrjax.main --config=configs/label_efficiency.py    # phantoms: DINO against scratch
    python -m cxrjax.main --config=configs/label_efficiency.py:small,inits=scratch+dino=runs/dino
    python -m cxrjax.main --config=configs/label_efficiency.py:fractions=1+100,seeds=0,lr=1e-3
    python -m cxrjax.main --config=configs/label_efficiency.py:tiny  # for tests

`inits=` are names with what each starts from: a finished run's workdir, a file of weights, or a
config of `configs/` that is then run first, `dino=dino.py`. `scratch` has the network of the first
workdir, without its weights, and `optimizer.layer_decay=1.0`. Gains are over the first of them.

The first gives these AUROCs of the phantom's test images, means of seeds 0 and 1; its 13 runs take
7 minutes of a processor's time (2026-11-21):

    labels     18     174    1,737
    scratch    0.848  0.893  0.877
    dino       0.914  0.951  0.955

Every fine-tuning is an ordinary run of `configs/finetune.py` in a folder of the workdir, in a
process of its own. `report.html`, `table.csv` and `run.json` have what all came to. The same
command goes on where it was stopped; more starts, fractions and seeds can be added to a workdir.

`folds=10` judges every patient once: each of ten runs learns from nine tenths of all patients and
is judged on the others. `folds=5 by image` divides images instead, to show what patients on both
sides are worth. Several seeds are judged together as well, as an ensemble.

With each seed other labels are drawn (`data.split_seed`); those of smaller fractions lie in larger
ones, and all starts learn from the same. `1+10` are percents, `16 per class` may stand among them.
What validates is not divided. Options not below are handed on to `configs/finetune.py`, and
what concerns radiographs and network to a pretraining; `args.NAME=key=value;key=value` is for the
method of that name, for the pretraining of a start, or else for its fine-tunings.
`methods=finetune+mean_teacher+bke` draws these configs as well, for which the other images stay,
without their labels.
"""

import dataclasses
import pathlib

from ml_collections import ConfigDict

from cxrjax.config import study_args

OWN = {
  "inits": "scratch+dino=dino.py",
  "fractions": "1+10+100",
  "seeds": "0+1",
  "folds": "",  # of a cross-validation, `10` or `10 by image`, instead of the source's splits
  "methods": "finetune",
}
# A start that is to pay needs longer than the demo of `configs/dino.py` takes.
LONGER = {
  "dino.py": (
    "duration=80 epochs",
    "eval_every=20 epochs",
    "batch_size=64",
    "lr=0.016",
    "method.momentum.end=1.0",
  )
}
# Rates that fall towards the input suit layers that know something already.
SCRATCH = "optimizer.layer_decay=1.0"
REAL = {"fractions": "1+5+10+50+100", "seeds": "0+1+2"}
PRESETS = {
  "small": REAL,
  "paper": REAL,
  "strong": REAL,
  "tiny": {"fractions": "50+100", "seeds": "0"},
}


def get_config(arg: str = "") -> ConfigDict:
  o, handed = study_args.parse(arg, OWN, PRESETS)
  # What the starts have as their own demo is not the same for all.
  if not handed.presets and not any(item.startswith("data=") for item in handed.items):
    handed = dataclasses.replace(handed, items=("data=phantom", *handed.items))
  config = ConfigDict()
  config.task = "cxrjax.tasks.label_efficiency"
  config.arg = handed.argument()
  config.fractions = study_args.split_list(o.fractions)
  config.seeds = study_args.split_list(o.seeds)
  config.folds = o.folds
  config.folder = str(pathlib.Path(__file__).parent)
  config.methods = tuple(  # name, file, argument of its own
    (name, f"{name}.py", ",".join(handed.kept.get(name, ())))
    for name in study_args.split_list(o.methods)
  )
  inits = []
  for item in study_args.split_list(o.inits):
    name, _, path = item.partition("=")
    if path.endswith(".py"):
      longer = () if handed.presets else LONGER.get(path, ())
      own = handed.argument(*longer, name=name, only=study_args.SHARED)
    else:
      own = ",".join(handed.kept.get(name, [SCRATCH] if name == "scratch" else []))
    inits.append((name, path, own))
  # Name, what it starts from, argument of that where it is a config; else of its fine-tunings.
  config.inits = tuple(inits)
  return config
