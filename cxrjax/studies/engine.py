"""Runs of a study as config objects, and their tidy table.

A study lists `ConfigJob`s, each with the factors in which it differs from the others, such as
`{"lr": 0.002, "seed": 0}`. `launcher.run_jobs` launches them; text exists only in the file of
their config and their command.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import pprint
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from cxrjax.core import tables
from cxrjax.core.atomic_files import atomic_path
from cxrjax.studies import launcher, results_table

FOLDER = "configs"  # of the runs' config files, in the workdir
BOUNDS = ("value", "low", "high", "n")


@dataclasses.dataclass(frozen=True)
class ConfigJob(launcher.Job):
  """A run of a config object.

  Attributes:
    build: gives the config, once the runs in `needs` have finished.
    factors: what distinguishes the run from the others.
  """

  build: Callable[[], Mapping[str, Any]]
  factors: Mapping[str, Any]

  @functools.cached_property
  def config(self) -> dict[str, Any]:
    """The config, as plain Python."""
    return dict(_plain(self.build()))

  def prepare(self) -> None:
    """Writes the config file that the command names."""
    path = pathlib.Path(self.flags[0].removeprefix("--config="))
    path.parent.mkdir(parents=True, exist_ok=True)
    literal = pprint.pformat(self.config, width=96, sort_dicts=False)
    with atomic_path(path) as temporary:
      temporary.write_text(
        f'"""Config of the run {self.name} of a study."""\n\n'
        "from ml_collections import ConfigDict\n\n"
        f"inf, nan = float('inf'), float('nan')\nCONFIG = {literal}\n\n\n"
        'def get_config(arg: str = "") -> ConfigDict:\n  return ConfigDict(CONFIG)\n'
      )


def job(
  name: str,
  build: Callable[[], Mapping[str, Any]],
  workdir: pathlib.Path,
  factors: Mapping[str, Any],
  needs: Sequence[str] = (),
) -> ConfigJob:
  """A run in the folder `name` of a study's workdir; see `ConfigJob`."""
  flags = (f"--config={workdir / FOLDER / name}.py",)
  return ConfigJob(name, flags, build, factors, needs=tuple(needs))


def _plain(value: Any) -> Any:
  """A config without ConfigDicts."""
  if isinstance(value, ConfigDict):
    value = value.to_dict()
  if isinstance(value, Mapping):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return type(value)(_plain(v) for v in value)
  return value


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Any]]:
  """`table.csv`: a line for every run, evaluator, test set and metric, or one for a run without.

  Args:
    rows: of every run its `name`, `status`, `factors` and `results`, `{evaluator: {"set": its
      images, "metrics": {metric: interval}}}`.
  """
  factors = list(dict.fromkeys(key for row in rows for key in row["factors"]))
  columns = ["run", "status", *factors, "evaluator", "set", "metric", *BOUNDS, "why", "command"]

  def lines() -> Iterator[dict[str, Any]]:
    for row in rows:
      run = {**row["factors"], **{k: row.get(k) for k in ("status", "why", "command")}}
      run["run"] = row["name"]
      for evaluator, results in row.get("results", {}).items():
        for metric, interval in results["metrics"].items():
          yield run | {"evaluator": evaluator, "set": results["set"], "metric": metric} | interval
      if not row.get("results"):
        yield run

  yield from tables.rows(
    " ".join(columns),
    ({k: results_table.format_cell(v) for k, v in line.items()} for line in lines()),
  )
