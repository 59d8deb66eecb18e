"""Label efficiency: fine-tunes from several starts with 1 % to 100 % of the labels, and draws it.

    python -m cxrjax.main --config=configs/label_efficiency.py    # phantoms: DINO against scratch
    python -m cxrjax.main --config=configs/label_efficiency.py:small,inits=scratch+dino=runs/dino
    python -m cxrjax.main --config=configs/label_efficiency.py:fractions=1+100,seeds=0,lr=1e-3
    python -m cxrjax.main --config=configs/label_efficiency.py:tiny  # for tests

`inits=` are names with what each starts from: a finished run's workdir, a file of weights, or a
config of `configs/` that is then run first, `dino=dino.py`. `scratch` has the network of the first
workdir, without its weights. Gains are over the first of them.

Every fine-tuning is an ordinary run of `configs/finetune.py` in a folder of the workdir, in a
process of its own. `report.html`, `table.csv` and `run.json` have what all came to. The same
command goes on where it was stopped; more starts, fractions and seeds can be added to a workdir.

With each seed other labels are drawn (`split_seed`); those of smaller fractions lie in larger ones,
and all starts learn from the same. `1+10` are percents, `16 per class` may stand among them. What
validates is not divided. Options that are not below are handed on to `configs/finetune.py`, and
what concerns radiographs and network to a pretraining; `args.NAME=key=value;key=value` is for the
method or start of that name. `methods=finetune+mean_teacher+bke` draws these configs as well, for
which the other images stay, without their labels.
"""

import pathlib

from ml_collections import ConfigDict

from cxrjax.core import several

OWN = {
  "inits": "scratch+dino=dino.py",
  "fractions": "1+10+100",
  "seeds": "0+1",
  "methods": "finetune",
}
REAL = {"fractions": "1+5+10+50+100", "seeds": "0+1+2"}
PRESETS = {
  "small": REAL, "paper": REAL, "tiny": {"fractions": "50+100", "seeds": "0"},
}


def get_config(arg: str = "") -> ConfigDict:
  o, handed = several.parse(arg, OWN, PRESETS)
  config = ConfigDict()
  config.task = "cxrjax.tasks.label_efficiency"
  config.arg = handed.argument()
  config.fractions = several.listed(o.fractions)
  config.seeds = several.listed(o.seeds)
  config.folder = str(pathlib.Path(__file__).parent)
  config.methods = tuple(  # name, file, argument of its own
    (name, f"{name}.py", ",".join(handed.kept.get(name, ()))) for name in several.listed(o.methods))
  inits = []
  for item in several.listed(o.inits):
    name, _, path = item.partition("=")
    own = handed.argument(name=name, only=several.SHARED) if path.endswith(".py") else ""
    inits.append((name, path, own))
  config.inits = tuple(inits)  # name, what it starts from, argument of that where it is a config
  return config
