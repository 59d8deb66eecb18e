"""Sources of radiographs in a config: one, a mixture `A+B*2`, and those of evaluators."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from cxrjax.config.args import literal
from cxrjax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sources:
  """Sources of radiographs, of training and of evaluators.

  Attributes:
    config: the config.
    data: `A+B*2`, or one name.
    manual_dir: archives that tfds: prepares a data set from.
    options: of the sources in `data`.
    phantom: of the phantom, wherever it is used.
  """

  config: ConfigDict
  data: str
  manual_dir: str
  options: Mapping[str, Any]
  phantom: Mapping[str, Any]

  def fill(self, eval_data: str) -> None:
    """Sets the training data and, where they are named or the `same`, those of evaluators."""
    c = self.config
    source, options = self.source(), self.options_of(self.data)
    with c.data.ignore_type():
      c.data.source, c.data.options = source, options
    if "evals" not in c:
      return
    labelled = self.data if eval_data == "same" else eval_data
    unknown = eval_data == "same" and ("+" in labelled or labelled.startswith("folder:"))
    if "probe" in c.evals:
      probe = c.evals.probe
      probe.data.name = labelled
      if labelled == "none" or unknown:
        del c.evals["probe"]
      elif "+" in labelled:
        del c.evals["probe"]
        for name, one in evaluation_sources(labelled).items():
          shared = {key: probe.get_ref(key) for key in probe if key != "data"}
          c.evals[name] = {**shared, "data": {"name": one}}
    for name in list(c.evals):
      for key in ("data", "train", "fitted"):
        spec = c.evals[name].get(key)
        if not isinstance(spec, ConfigDict):
          continue
        if spec.name == "":
          del c.evals[name]
          break
        is_same = spec.name in ("same", self.data, source)
        own = self.options_of(self.data if is_same else spec.name)
        with spec.ignore_type():
          spec.update(own)
          spec.name = source if is_same else spec.name

  def source(self) -> Any:
    """`config.data.source`: one name, or for `A+B*2` the sources with their weights."""
    sources = [_weighted(one) for one in self.data.split("+")]
    if len(sources) == 1:
      return self.data
    return tuple(
      {
        "source": name,
        "options": self.options_of(name),
        **({} if weight is None else {"weight": weight}),
      }
      for name, weight in sources
    )

  def options_of(self, name: str) -> dict[str, Any]:
    """Options of one source; {} where `name` is a whole mixture."""
    names = [_weighted(one)[0] for one in self.data.split("+")]
    options = dict(self.options) if name in names else {}
    if name == "phantom":
      return {**self.phantom, "size": self.config.data.size, **options}
    if self.manual_dir and (name.startswith("tfds:") or not name) and "+" not in name:
      options["manual_dir"] = self.manual_dir
    return options


def evaluation_sources(labelled: str) -> dict[str, str]:
  """Splits `A+B` into sources that judge an encoder separately, by the names of their evaluators.

  A single source is called `probe`; of several, each is called by the end of its own name:
  `tfds:nlm_tb/shenzhen` is `shenzhen`.

  Raises:
    UserError: two sources with the same name.
  """
  sources = labelled.split("+")
  if len(sources) == 1:
    return {"probe": labelled}
  evaluators: dict[str, str] = {}
  for source in sources:
    name = re.sub(r"\W+", "_", re.split("[:/]", source.rstrip("/"))[-1]) or "probe"
    if name in evaluators:
      raise UserError(
        f"--config=...:eval_data={labelled} has two sources that would be called "
        f"{name!r}; rename a folder, or give one of them"
      )
    evaluators[name] = source
  return evaluators


def _weighted(part: str) -> tuple[str, float | None]:
  """Parses `A*2` as ("A", 2.0) and `A` as ("A", None)."""
  name, star, weight = part.rpartition("*")
  if not star:
    return part, None
  value = literal(weight)
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise UserError(f"--config=...:data={part}: {weight!r} is not a weight; write it like A*2+B")
  return name, float(value)
