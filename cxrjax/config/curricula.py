"""Shared parts of the curriculum configs: stages without labels, then stages with labels.

Options after the colon that are not the curriculum's own go to the stages with labels; those of
radiographs and network go to all stages. `args.STAGE=key=value;key=value` goes to one stage.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from cxrjax.config import data_sources, study_args
from cxrjax.config.study_args import ForwardedArgs

OWN: dict[str, Any] = {
  "data": "phantom",  # labelled sources; for A+B each gets its own last stage
  "unlabelled": "",  # sources for the stages without labels; "": `data`
  "weights": "",  # weights file for the first stage; "": random
  "each": True,  # also run the last stages from scratch and from every earlier stage
  "seeds": "0",  # of the last stages, e.g. 0+1+2
}
# Learning rates that decrease towards the input suit pretrained layers only.
SCRATCH = ("--config.optimizer.layer_decay=1.0",)
UNLABELLED = "tfds:chest_xray_pneumonia+tfds:covid19_radiography+tfds:nlm_tb/shenzhen"


def without_labels(
  o: ConfigDict, handed: ForwardedArgs, tasks: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
  """Builds a stage for each of `tasks`, each initialized from the one before.

  Args:
    o: the options, including those of `OWN`.
    handed: arguments forwarded to the stages.
    tasks: config name and extra arguments of each.
  """
  stages: list[dict[str, Any]] = []
  for name, extra in tasks:
    data = [f"data={o.unlabelled or o.data}"]
    data += [] if o.data == "phantom" else [f"eval_data={o.data}"]
    arg = handed.argument(*data, extra, name=name, only=study_args.SHARED)
    stages.append(stage(name, f"{name}.py:{arg}", "previous" if stages else o.weights))
  return stages


def with_labels(o: ConfigDict, handed: ForwardedArgs, init: str) -> list[dict[str, Any]]:
  """Builds stages of `configs/finetune.py` on each labelled source, starting from `init`."""
  sources = data_sources.evaluation_sources(o.data)
  stages = []
  for source_name, source in sources.items():
    name = "finetune" if len(sources) == 1 else f"finetune-{source_name}"
    arg = handed.argument(f"data={source}", name=name)
    stages.append(stage(name, f"finetune.py:{arg}", init, SCRATCH))
  return stages


def stage(name: str, config: str, init: str, scratch: Sequence[str] = ()) -> dict[str, Any]:
  """An entry of `config.stages`; see `cxrjax.tasks.curriculum`."""
  return {"name": name, "config": config, "flags": (), "init": init, "scratch": tuple(scratch)}


def curriculum(o: ConfigDict, folder: str, stages: Sequence[dict[str, Any]]) -> ConfigDict:
  """Builds the complete config.

  Args:
    o: the options.
    folder: `__file__` of the config.
    stages: in order.
  """
  config = ConfigDict()
  config.task = "cxrjax.tasks.curriculum"
  config.folder = str(pathlib.Path(folder).parent)
  config.stages = tuple(stages)
  config.each = o.each
  config.seeds = study_args.split_list(o.seeds)
  return config
