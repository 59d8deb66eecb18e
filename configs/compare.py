"""Compares methods: same backbone, same unlabelled radiographs, same budget of forward FLOPs.

    python -m cxrjax.main --config=configs/compare.py             # phantom radiographs
    python -m cxrjax.main --config=configs/compare.py:small,manual_dir=FOLDER --workdir=runs/compare
    python -m cxrjax.main --config=configs/compare.py:paper,manual_dir=FOLDER  # ViT-S/16, 224 px
    python -m cxrjax.main --config=configs/compare.py:methods=dino+mae,seeds=0+1+2
    python -m cxrjax.main --config=configs/compare.py:tiny        # for tests

Every method is an ordinary run of its own config in a folder of the workdir, in a process of its
own. `report.html`, `table.csv` and `run.json` have what all came to: kNN and linear probe with
intervals, the paired gain over the same network untrained, the thumbnail floor, time and memory.
The same command goes on where it was stopped; more methods and seeds can be added to a workdir.

A method keeps its own recipe for `small` or `paper` (learning rate, views, heads, schedules); what
it states in epochs, and the length of a teacher's moving average, keep their share of the run. Only
the options below are the same for all. Methods whose paper trains a ResNet get AdamW where `:paper`
trains a ViT.

`budget=` is a number of forward FLOPs in matrix products, teachers included, as
`cxrjax/core/flops.py` counts them; or what another run would need, `100 epochs of dino`.
`args.NAME=key=value;key=value` is for one method: `args.rgmim=method.lung_ratio=0.5`.
"""

import pathlib

from ml_collections import ConfigDict

from cxrjax.config import recipe, study_args
from cxrjax.config.args import parse_arg, split_items
from cxrjax.core.errors import UserError, suggest

# Name in the comparison: config, and its arguments.
METHODS = {
  "dino": ("dino", ""),
  "dino_global": ("dino", "views.local_crops=0"),
  "dinov2": ("dinov2", ""),
  "gmml": ("gmml", ""),
  "sit": ("sit", ""),
  "mcssl": ("mcssl", ""),
  "mae": ("mae", ""),
  "rgmim": ("rgmim", ""),
  "simclr": ("simclr", ""),
  "moco2": ("moco", "method.version=2"),
  "moco3": ("moco", ""),
  "byol": ("byol", ""),
  "simsiam": ("simsiam", ""),
  "pirl_jigsaw": ("pirl_jigsaw", ""),
  "pirl_rotation": ("pirl_rotation", ""),
  "cross": ("cross", ""),
}
# Their papers train ResNets with SGD or LARS, which do not suit a ViT.
CONVOLUTIONAL = ("simclr", "moco2", "byol", "simsiam", "pirl_jigsaw", "pirl_rotation", "cross")
FOR_A_VIT = "optimizer=adamw,lr=5e-4,weight_decay=0.04,optimizer.weight_decay.end=0.4"

# What is the same for all methods, as is every dotted key that is typed.
COMMON = {
  **{name: recipe.PRESETS["demo"][name] for name in ("data", "store", "image_size", "model")},
  "batch_size": recipe.PRESETS["demo"]["batch_size"],
  "split": "train",
  "subset": "",
  "manual_dir": "",
  "eval_data": "same",
}
DEMO = {
  "methods": "+".join(METHODS),
  "seeds": "0",  # 0+1+2
  "budget": "4e11",  # forward FLOPs of each run
  "points": 4,  # evaluations of each run, besides the one before training
  **COMMON,
}
REAL = {
  "data": "tfds:chest_xray_pneumonia+tfds:covid19_radiography+tfds:nlm_tb/shenzhen",
  "eval_data": "tfds:chest_xray_pneumonia+tfds:nlm_tb/shenzhen",
}
PRESETS = {
  "small": {**recipe.PRESETS["small"], **REAL, "budget": "1e13"},
  "paper": {
    "store": 256,
    "image_size": 224,
    "model": "S",
    "batch_size": 256,
    **REAL,
    "budget": "100 epochs of dino",
  },
  "tiny": {**recipe.PRESETS["tiny"], "budget": "4 steps of dino", "points": 1},
}


def get_config(arg: str = "") -> ConfigDict:
  arg, kept = special(arg)
  switches = dict.fromkeys(PRESETS, False)
  values = dict(DEMO)
  chosen = [
    name for name, on in parse_arg(arg, **switches, **values).items() if name in PRESETS and on
  ]
  for name in chosen:
    values |= {k: v for k, v in PRESETS[name].items() if k in values}
  o = ConfigDict(parse_arg(arg, **switches, **values))
  unsaid = {name for name in ("subset", "manual_dir") if not o[name]}
  common = [f"{name}={o[name]}" for name in COMMON if name not in unsaid]
  common += ["evals.probe.whiten=True", *kept.pop("", [])]  # judge whitened features, too
  wanted = o.methods.split("+")
  for name in [*wanted, *kept]:
    if name not in METHODS:
      raise UserError(f"--config=...:methods={name} is not known{suggest(name, METHODS)}")
  folder = pathlib.Path(__file__).parent

  config = ConfigDict()
  config.task = "cxrjax.tasks.compare"
  config.budget = o.budget
  config.points = o.points
  config.seeds = study_args.split_list(o.seeds)
  config.folder = str(folder)
  methods = {}
  measure = o.budget.rpartition(" of ")[2].strip()
  for name in dict.fromkeys([*wanted, *([measure] if measure in METHODS else [])]):
    file, own = METHODS[name]
    if not (folder / f"{file}.py").is_file():
      raise UserError(f"--config=...:methods={name} has no config: {folder / file}.py is missing")
    vit = FOR_A_VIT if o.paper and name in CONVOLUTIONAL and "net" not in o.model else ""
    items = [*chosen, own, vit, *common, *kept.get(name, [])]
    methods[name] = (name, f"{file}.py", ",".join(filter(None, items)))
  config.methods = tuple(methods[name] for name in dict.fromkeys(wanted))
  config.measure = methods.get(measure, ())  # of the budget, where it is so much of a method
  return config


def special(arg: str | None) -> tuple[str, dict[str, list[str]]]:
  """The argument without what is handed on: `args.NAME=...` by name, other dotted keys by ""."""
  text, kept = study_args.split_per_run(arg)
  items = split_items(text)
  keys = [item for item in items if "." in item.partition("=")[0]]
  return ",".join(item for item in items if item not in keys), kept | ({"": keys} if keys else {})
