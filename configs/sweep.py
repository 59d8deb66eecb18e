"""Sweep: learning rate, weight decay or any other keys of a config, chosen on validation images.

    python -m cxrjax.main --config=configs/sweep.py               # fine-tuning from scratch
    python -m cxrjax.main --config=configs/sweep.py:small,data=folder:DIR,init=runs/dino
    python -m cxrjax.main --config="configs/sweep.py:linear,grid=lr=1e-3+1e-2"  # linear probe
    python -m cxrjax.main --config=configs/sweep.py:config=segment.py,score=dice
    python -m cxrjax.main --config=configs/sweep.py:tiny          # for tests

`grid=KEY=VALUE+VALUE;KEY=VALUE+VALUE` has all combinations of the values run; keys are those that
stand after the colon of `config=`. The best by `score`, a metric of the evaluator that validates,
averaged over `seeds`, is run once more with the evaluators of the test images, which no other run
has. `report.html`, `table.csv` and `run.json` have the results. Options that are not below go to
`config=`. The same command resumes; values and seeds can be added until one is chosen.
"""

import pathlib

from ml_collections import ConfigDict

from cxrjax.config import study_args
from cxrjax.core.errors import UserError

OWN = {
  "config": "finetune.py",
  "grid": "lr=0.002+0.008+0.03;weight_decay=0.005+0.05+0.5",
  "seeds": "0",
  "score": "",  # a metric in validation; "": that of the config, `checkpoint.score`
  "launcher": "processes",  # here: in this process; commands: only printed
}
PRESETS = {"small": {}, "paper": {}, "strong": {}, "linear": {}, "tiny": {"grid": "lr=0.002+0.008"}}


def get_config(arg: str = "") -> ConfigDict:
  o, handed = study_args.parse(arg, OWN, PRESETS)
  config = ConfigDict()
  config.task = "cxrjax.tasks.sweep"
  config.folder = str(pathlib.Path(__file__).parent)
  config.file = o.config
  config.arg = handed.argument()
  grid = []
  for item in filter(None, o.grid.split(";")):
    key, equals, values = item.partition("=")
    if not equals or not values:
      raise UserError(f"--config=...:grid={item} has no values; write it like lr=0.002+0.008")
    grid.append((key, tuple(values.split("+"))))
  config.grid = tuple(grid)
  config.seeds = study_args.split_list(o.seeds)
  config.score = o.score
  config.launcher = o.launcher
  return config
