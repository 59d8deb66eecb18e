"""What the configs of curricula share: stages without labels, then learning with them.

Options after the colon that are not a curriculum's own are for the stages with labels; of these,
what concerns radiographs and network is for all. `args.STAGE=key=value;key=value` is for one stage.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from cxrjax.config import recipe, study_args
from cxrjax.config.study_args import ForwardedArgs

OWN: dict[str, Any] = {
  "data": "phantom",  # labelled; A+B: each has a last stage of its own
  "unlabelled": "",  # sources to learn from without labels; "" is `data`
  "weights": "",  # of the first stage's network, a file; "" draws them
  "each": True,  # repeat the last stages from scratch and from every earlier stage
  "seeds": "0",  # of the last stages, 0+1+2
}
# Rates that fall towards the input suit layers that know something already.
SCRATCH = ("--config.optimizer.layer_decay=1.0",)
UNLABELLED = "tfds:chest_xray_pneumonia+tfds:covid19_radiography+tfds:nlm_tb/shenzhen"


def without_labels(
  o: ConfigDict, handed: ForwardedArgs, tasks: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
  """A stage for each of `tasks`, each beginning with the one before.

  Args:
    o: the options, `OWN` among them.
    handed: what is for the stages.
    tasks: of each its config's name and what it is given besides.
  """
  stages: list[dict[str, Any]] = []
  for name, more in tasks:
    data = [f"data={o.unlabelled or o.data}"]
    data += [] if o.data == "phantom" else [f"eval_data={o.data}"]
    arg = handed.argument(*data, more, name=name, only=study_args.SHARED)
    stages.append(stage(name, f"{name}.py:{arg}", "previous" if stages else o.weights))
  return stages


def with_labels(o: ConfigDict, handed: ForwardedArgs, init: str) -> list[dict[str, Any]]:
  """`configs/finetune.py` on each of the labelled sources, from the stage `init`."""
  sources = recipe.judges(o.data)
  names = {n: "finetune" if len(sources) == 1 else f"finetune-{n}" for n in sources}
  return [
    stage(
      names[n], f"finetune.py:{handed.argument(f'data={source}', name=names[n])}", init, SCRATCH
    )
    for n, source in sources.items()
  ]


def stage(name: str, config: str, init: str, scratch: Sequence[str] = ()) -> dict[str, Any]:
  """One of `config.stages`; see `cxrjax.tasks.curriculum`."""
  return {"name": name, "config": config, "flags": (), "init": init, "scratch": tuple(scratch)}


def curriculum(o: ConfigDict, folder: str, stages: Sequence[dict[str, Any]]) -> ConfigDict:
  """The whole config.

  Args:
    o: the options.
    folder: a config's own `__file__`.
    stages: in their order.
  """
  config = ConfigDict()
  config.task = "cxrjax.tasks.curriculum"
  config.folder = str(pathlib.Path(folder).parent)
  config.stages = tuple(stages)
  config.each = o.each
  config.seeds = study_args.listed(o.seeds)
  return config
