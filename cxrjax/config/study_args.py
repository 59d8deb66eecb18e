"""What stands after the colon of a config of several runs: its own options, and what it hands on.

Options that are not its own are for the configs of the runs; `args.NAME=key=value;key=value` is for
one of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from cxrjax.config.args import parse_arg
from cxrjax.core.errors import UserError

# Of pretraining and of learning with labels the same: radiographs and network.
SHARED = (
  "data",
  "frontal",
  "manual_dir",
  "examples",
  "sites",
  "store",
  "image_size",
  "model",
  "encoder_width",
  "patch_size",
  "standardize",
)


@dataclasses.dataclass(frozen=True)
class ForwardedArgs:
  """What is handed on, as it was written.

  Attributes:
    presets: `small`, `paper` or `tiny`.
    items: `key=value`, for all.
    kept: the same for one, by its name.
  """

  presets: tuple[str, ...]
  items: tuple[str, ...]
  kept: Mapping[str, Sequence[str]]

  def argument(self, *more: str, name: str = "", only: Sequence[str] | None = None) -> str:
    """The argument of a run's config.

    Args:
      *more: items of this run, below those for all.
      name: of the run, whose own items come last.
      only: of the items for all those with these keys, and the options of the source.
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
  """The options of a config of several runs, and what is for the runs.

  Args:
    arg: `"small,seeds=0;1,data=folder:PATH,args.dino=lr=1e-3;momentum=0.99"`.
    own: options with their values.
    presets: what `small`, `paper` and `tiny` change of them.

  Raises:
    UserError: an own option with a wrong value; `args.NAME` without any.
  """
  text, kept = for_one(arg)
  mine: list[str] = []
  items: list[str] = []
  chosen: list[str] = []
  for item in filter(None, text.split(",")):
    name = item.partition("=")[0].strip()
    if name in presets:
      chosen.append(name)
    else:
      (mine if name in own else items).append(item)
  values = dict(own)
  for name in chosen:
    values |= presets[name]
  o = ConfigDict(parse_arg(",".join(mine), **values))
  return o, ForwardedArgs(tuple(chosen), tuple(items), kept)


def for_one(arg: str | None) -> tuple[str, dict[str, list[str]]]:
  """The argument without its `args.NAME=key=value;key=value`, and these by name."""
  rest: list[str] = []
  kept: dict[str, list[str]] = {}
  for item in filter(None, (arg or "").split(",")):
    if not item.startswith("args."):
      rest.append(item)
      continue
    name, equals, text = item.removeprefix("args.").partition("=")
    if not equals:
      raise UserError(
        f"--config=...:{item} lacks its value; write it like "
        "args.rgmim=lung_ratio=0.5;mask_ratio=0.6"
      )
    kept.setdefault(name, []).extend(text.split(";"))
  return ",".join(rest), kept


def listed(text: str) -> tuple[str, ...]:
  """`0+1+2` or, quoted for the shell, `0;1;2` as its parts."""
  return tuple(text.split(";" if ";" in text else "+"))
