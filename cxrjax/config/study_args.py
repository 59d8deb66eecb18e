"""Arguments after the colon of a study's config: its own options, and those forwarded to its runs.

Options that are not the study's own go to the configs of all runs; `args.NAME=key=value;key=value`
goes to one of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from cxrjax.config.args import parse_arg
from cxrjax.core.errors import UserError

# Shared by pretraining and learning with labels: radiographs and network.
SHARED = (
  "data",
  "manual_dir",
  "store",
  "image_size",
  "model",
  "model.width",
  "model.patch_size",
  "model.standardize",
)


@dataclasses.dataclass(frozen=True)
class ForwardedArgs:
  """Arguments that are forwarded to the runs, as written.

  Attributes:
    presets: `small`, `paper` or `tiny`.
    items: `key=value` for all runs.
    kept: `key=value` for single runs, by run name.
  """

  presets: tuple[str, ...]
  items: tuple[str, ...]
  kept: Mapping[str, Sequence[str]]

  def argument(self, *more: str, name: str = "", only: Sequence[str] | None = None) -> str:
    """Builds the argument of a run's config.

    Args:
      *more: items of this run; those for all runs override them.
      name: the run, whose own items come last.
      only: keys of the items for all runs to keep; options of the source are always kept.
    """
    items = [
      item
      for item in self.items
      if only is None or item.startswith("data.") or item.partition("=")[0] in only
    ]
    return ",".join(filter(None, [*self.presets, *more, *items, *self.kept.get(name, ())]))


def parse(
  arg: str | None, own: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]]
) -> tuple[ConfigDict, ForwardedArgs]:
  """Parses a study's argument into its own options and the arguments for its runs.

  Args:
    arg: `"small,seeds=0;1,data=folder:PATH,args.dino=lr=1e-3;method.hidden=64"`.
    own: the study's options and their defaults.
    presets: overrides of `small`, `paper` and `tiny` for these options.

  Raises:
    UserError: an own option with a wrong value; `args.NAME` without a value.
  """
  shared, for_runs = split_per_run(arg)
  own_items: list[str] = []
  forwarded: list[str] = []
  chosen_presets: list[str] = []
  for item in filter(None, shared.split(",")):
    name = item.partition("=")[0].strip()
    if name in presets:
      chosen_presets.append(name)
    else:
      (own_items if name in own else forwarded).append(item)
  values = dict(own)
  for name in chosen_presets:
    values |= presets[name]
  o = ConfigDict(parse_arg(",".join(own_items), **values))
  return o, ForwardedArgs(tuple(chosen_presets), tuple(forwarded), for_runs)


def split_per_run(arg: str | None) -> tuple[str, dict[str, list[str]]]:
  """Splits an argument into the part without `args.NAME=key=value;key=value`, and those by name."""
  shared: list[str] = []
  by_name: dict[str, list[str]] = {}
  for item in filter(None, (arg or "").split(",")):
    if not item.startswith("args."):
      shared.append(item)
      continue
    name, equals, text = item.removeprefix("args.").partition("=")
    if not equals:
      raise UserError(
        f"--config=...:{item} lacks its value; write it like "
        "args.rgmim=method.lung_ratio=0.5;method.mask_ratio=0.6"
      )
    by_name.setdefault(name, []).extend(text.split(";"))
  return ",".join(shared), by_name


def split_list(text: str) -> tuple[str, ...]:
  """Splits a list such as `0+1+2` or, quoted for the shell, `0;1;2`."""
  return tuple(text.split(";" if ";" in text else "+"))
