"""Presets and typed keys, `small,lr=1e-3,method.hidden=64`, put over a config.

What follows the colon of `--config=FILE:ARG`, what a flag `--config.KEY=VALUE` sets and what a
preset holds are the same dotted keys. A few short aliases stand for one key or several. Those that
other values follow from (a network, sources, evaluators) are resolved here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from cxrjax.config import instantiate, recipe
from cxrjax.config.args import literal, split_items
from cxrjax.config.data_sources import Sources
from cxrjax.core import files, zoo
from cxrjax.core.errors import UserError, suggest

ALIASES: dict[str, tuple[str, ...]] = {  # keys that each sets, where the config has them
  "data": ("data.source", "data.options", "evals.*.data"),  # A+B*2: a mixture
  "manual_dir": ("data.options.manual_dir", "evals.*.data.manual_dir"),  # of tfds: sources
  "split": ("data.split",),
  "val": ("evals.validation.data.val", "evals.validation.data.split"),
  "site": ("evals.site.data.name",),  # another source to test on, with all of its images
  "subset": ("data.subset",),
  "store": ("data.size",),
  "image_size": ("views.global_size",),  # of views, positions and evaluators
  "model": ("model",),  # a network: see recipe.network
  "init": ("init.path", "model"),  # a finished run, with its network, or a file of weights
  "optimizer": ("optimizer.name", "optimizer.options", "optimizer.coupled_decay", "optimizer.clip"),
  "lr": ("optimizer.lr.start",),
  "weight_decay": ("optimizer.weight_decay.start", "optimizer.weight_decay.end"),
  "eval_data": ("evals",),  # labelled sources A+B, each a probe; `same` as data, or `none`
  "eval_every": ("checkpoint.every",),  # and of evaluators
}
_RESOLVED = ("data", "manual_dir", "model", "method", "init", "optimizer", "eval_data")
_PHANTOM = {"n": 2048, "sites": 1}


class Typed(str):
  """Text of a value that a user typed."""

  __slots__ = ()


def apply(
  c: ConfigDict,
  arg: str | None = "",
  *,
  shared: Mapping[str, Mapping[str, Any]] = recipe.PRESETS,
  scratch: Mapping[str, Any] | None = None,
  **presets: Mapping[str, Any],
) -> ConfigDict:
  """Puts presets and typed keys over a config, and resolves what follows from them.

  Args:
    c: the whole config, which is changed.
    arg: `"small,lr=1e-3"`: names of presets, and keys over them.
    shared: presets below those of the same names in `presets`. `demo` holds unless `paper` is
      chosen, `mini` over it where the data are `mini` and no other preset has an image size.
    scratch: over all presets, where training starts from random weights.
    **presets: of the config file, dotted keys or aliases with their values.

  Returns:
    The same config.

  Raises:
    UserError: an unknown preset or key, or a value of another type.
  """
  names = [name for name in dict.fromkeys((*shared, *presets)) if name not in ("demo", "mini")]
  chosen, typed = [], {}
  for item in split_items(arg):
    key, equals, text = (part.strip() for part in item.partition("="))
    if key in names and not equals:
      chosen.append(key)
    else:
      typed[key] = Typed(text if equals else "True")
  own = Values(c, names)
  layers = [name for name in ("demo",) if "paper" not in chosen]
  layers += [name for name in names if name in chosen]
  for name in layers:
    own.put(shared.get(name, {}), presets.get(name, {}))
  sized = [
    name for name in chosen if "image_size" in {**shared.get(name, {}), **presets.get(name, {})}
  ]
  if (
    "paper" not in chosen and not sized and str(typed.get("data", own.values.get("data"))) == "mini"
  ):
    own.put(shared.get("mini", {}), presets.get("mini", {}))
  if scratch and not typed.get("init"):
    own.put(scratch)
  own.put(typed)
  own.resolve()
  return c


@dataclasses.dataclass
class Values:
  """Values by key or alias that are to be put over a config, the later ones over the earlier.

  Attributes:
    config: the config.
    presets: names of the presets that it has, for errors.
    values: plain values, or `Typed` text.
  """

  config: ConfigDict
  presets: Sequence[str] = ()
  values: dict[str, Any] = dataclasses.field(default_factory=dict)

  def put(self, *layers: Mapping[str, Any]) -> None:
    """Adds values, with the keys of aliases in their place."""
    for name, value in (item for layer in layers for item in layer.items()):
      keys = [name]
      if name in ALIASES and name not in _RESOLVED:
        keys = [key for key in ALIASES[name] if self._has(key)] or keys
      for key in keys:
        if key not in _RESOLVED:
          inside = [other for other in self.values if other.startswith(f"{key}.")]
          for other in inside:
            del self.values[other]
        self.values.pop(key, None)
        self.values[key] = value

  def set_keys(self) -> None:
    """Changes keys of a config in which everything is resolved already."""
    for key, value in self.values.items():
      self._set(key, value)

  def resolve(self) -> None:
    """Changes the config, and what follows from keys and aliases."""
    c, take = self.config, self.values.pop
    self._set_network(str(take("init", "")), str(take("model", "")))
    own_method = str(take("method", ""))
    if own_method:  # my_package.my_file:MyMethod, with options of its own
      c.method = {"name": own_method}
    self._add_evaluators()
    if "optimizer" in self.values:
      self._set_optimizer(str(take("optimizer")))
    data, manual_dir = take("data", c.get("data", {}).get("source", "")), take("manual_dir", "")
    eval_data = str(take("eval_data", "") or _lookup(c, "evals.probe.data.name")[0])
    options: dict[str, Any] = {}
    phantom = dict(_PHANTOM)
    later = {}
    for key, value in self.values.items():
      outer, _, last = key.partition(".")
      if self._has(key):
        self._set(key, value)
      elif (
        outer == "model"
        and last
        and (last in self._network_takes() or (isinstance(value, Typed) and not _is_of(c, "model")))
      ):
        c.model[last] = _several(value)
      elif outer == "model" and not isinstance(value, Typed):
        continue  # a preset's, for another network
      elif outer == "method" and own_method:
        if isinstance(value, Typed):  # else a preset's, for the config's method
          c.method[last] = _several(value)
      elif outer == "evals" and self._is_own_evaluator(last.partition(".")[0]):
        name, _, option = last.partition(".")
        c.evals[name][option] = _several(value)
      elif outer == "data" and "data" in c and "." not in (last := last.removeprefix("options.")):
        (options if isinstance(value, Typed) else phantom)[last] = _several(value)
      else:
        later[key] = value
    if c.get("model", {}).get("name") == "cxrjax.models.resnet" and "small_stem" not in c.model:
      c.model.small_stem = c.views.global_size <= 64
    if "data" in c and "options" in c.data:
      Sources(c, str(data), str(manual_dir), options, phantom).fill(eval_data)
    for key, value in later.items():
      self._set(key, value)

  def _add_evaluators(self) -> None:
    """Adds the user's own evaluators, `evals.NAME=my_package.my_file:MyEvaluator`."""
    c = self.config
    names = [key for key in self.values if key.startswith("evals.") and key.count(".") == 1]
    for key in names if "evals" in c else ():
      if not self._has(key):
        views = {name: c.views.get_ref(name) for name in ("mean", "std")}
        c.evals[key.removeprefix("evals.")] = {
          "name": str(self.values.pop(key)),
          "every": c.checkpoint.get_ref("every"),
          "data": {"name": "same"},
          "size": c.views.get_ref("global_size"),
          **views,
          **recipe.decoding(c),
        }

  def _is_own_evaluator(self, name: str) -> bool:
    evals = self.config.get("evals", {})
    return name in evals and not _is_of(evals, name)

  def _has(self, key: str) -> bool:
    return has(self.config, key)

  def _is_open(self, key: str) -> bool:
    """Whether the config has a key, or the options among which it would stand."""
    return self._has(key) or self._has(key.removesuffix(".manual_dir"))

  def _network_takes(self) -> list[str]:
    """Keys of the network's class, of this package."""
    if not _is_of(self.config, "model"):
      return []
    model: Any = instantiate.locate(self.config.model.name, "Model", "config.model.name")
    return [field.name for field in dataclasses.fields(model) if field.init]

  def _set(self, key: str, value: Any) -> None:
    """Sets a key that the config has.

    Raises:
      UserError: it has no such key, or the value is of another type.
    """
    current, exists = _lookup(self.config, key)
    if not exists:
      raise UserError(
        f"--config=...:{key}={value} is not an option of this config{self._nearest(key)}"
      )
    value = read(value, current, key) if isinstance(value, Typed) else value
    if current == value and type(current) is type(value):
      return
    outer, _, last = key.rpartition(".")
    group = _lookup(self.config, outer)[0] if outer else self.config
    with group.ignore_type():
      group[last] = value

  def _nearest(self, key: str) -> str:
    """What was meant by a key that does not exist, with type and value."""
    aliases = [name for name, keys in ALIASES.items() if any(map(self._is_open, keys))]
    leaves = dict(_leaves(self.config))
    extra = [f"model.{name}" for name in self._network_takes()] if key[:6] == "model." else []
    known = [*leaves, *aliases, *self.presets, *extra]
    last = {name.rpartition(".")[2]: name for name in known}
    close = difflib.get_close_matches(key, known, n=1) or [
      last[name] for name in difflib.get_close_matches(key.rpartition(".")[2], last, n=1)
    ]
    if not close:
      group = key.rpartition(".")[0]
      inside = sorted(name for name in leaves if name.startswith(f"{group}.") and group)
      return f"; valid: {', '.join(inside or [*aliases, *self.presets])}; --help lists all keys"
    name = close[0]
    value = f" ({type(leaves[name]).__name__}, {leaves[name]!r})" if name in leaves else ""
    return f"; did you mean {name!r}{value}? --help lists all keys"

  def _set_network(self, init: str, name: str) -> None:
    """Sets `init.path` and `model`: of a run, or by name, with the values of the model before."""
    c = self.config
    if init:
      c.init.path = init
    run = _model_of_run(init)
    if run:
      dropped = self.values.get("model.drop_path", c.model.get("drop_path", 0.1))
      for key in [key for key in self.values if key.startswith("model.")]:
        if not isinstance(self.values[key], Typed):
          del self.values[key]
      kept = {"drop_path": dropped, "image_size": c.views.get_ref("global_size")}
      c.model = run
      for key in [key for key in kept if key in run]:
        del c.model[key]
        c.model[key] = (
          read(kept[key], run[key], f"model.{key}") if isinstance(kept[key], Typed) else kept[key]
        )
    elif name:
      before, network = c.model, recipe.network(c, name)
      kind = {"name", "variant", "depth"}
      if all(before.get(key) == network.get(key) for key in kind):
        return
      c.model = network
      for key in set(network) & set(before) - {*kind, "image_size"}:
        c.model[key] = before[key]

  def _set_optimizer(self, name: str) -> None:
    """Sets the optimiser by its short name; its options stay where it is the config's already."""
    if name not in recipe.OPTIMIZERS:
      raise UserError(f"option optimizer={name!r} is unknown{suggest(name, recipe.OPTIMIZERS)}")
    if self.config.optimizer.name != recipe.OPTIMIZERS[name]["name"]:
      recipe.set_optimizer(self.config, name)


def read(text: str, current: Any, key: str) -> Any:
  """A typed value, of the type that the key has now.

  A number for a schedule makes it constant; a number for a list of numbers stands for all of them.

  Raises:
    UserError: it is of another type.
  """
  value = literal(text)
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  match current:
    case ConfigDict():
      if is_number and "start" in current:
        return float(value)
      if isinstance(value, dict):
        return ConfigDict(value)
    case bool():
      if text.lower() in ("true", "false"):
        return text.lower() == "true"
    case str():
      return value if isinstance(value, str) else text
    case int() if is_number and isinstance(value, int):
      return value
    case float() if is_number:
      return float(value)
    case tuple() if isinstance(value, tuple | list):
      return tuple(value)
    case tuple() if is_number and len(current) > 1 and all(isinstance(v, float) for v in current):
      return float(value)
    case tuple():
      return tuple(literal(one) for one in text.split(";"))
    case None:
      return value
  if isinstance(current, ConfigDict):
    number = "a number, which makes it constant; or " if "start" in current else "no value: "
    keys = ", ".join(f"{key}.{name}" for name in current)
    raise UserError(f"--config=...:{key}={text} must be {number}set {keys}")
  raise UserError(
    f"--config=...:{key}={text} must be of type {type(current).__name__}, like {current!r}"
  )


def _several(value: Any) -> Any:
  """A value whose key has none yet; `a;b` are several."""
  if not isinstance(value, Typed):
    return value
  values = tuple(literal(one) for one in value.split(";"))
  return values if len(values) > 1 else values[0]


def _is_of(c: ConfigDict, group: str) -> bool:
  """Whether a group's object is this package's, whose keys are known."""
  return str(c.get(group, {}).get("name", "")).startswith("cxrjax.")


def has(config: ConfigDict, key: str) -> bool:
  """Whether a config has a dotted key."""
  return _lookup(config, key)[1]


def _lookup(config: ConfigDict, key: str) -> tuple[Any, bool]:
  """The value of a dotted key, and whether it exists."""
  value: Any = config
  for word in key.split("."):
    if not isinstance(value, ConfigDict) or word not in value:
      return None, False
    value = value[word]
  return value, True


def _leaves(config: ConfigDict, outer: str = "") -> Iterator[tuple[str, Any]]:
  for key, value in config.items():
    if isinstance(value, ConfigDict) and len(value):
      yield from _leaves(value, f"{outer}{key}.")
    else:
      yield f"{outer}{key}", value


def _model_of_run(init: str) -> dict[str, Any]:
  """`config.model` of a finished run; {} for a file of weights."""
  run_config = zoo.resolve_workdir(init, "--config=...:init") / "config.json"
  if not init or not run_config.is_file():
    return {}
  try:
    return dict(files.read_mapping(run_config)["model"])
  except (OSError, KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"--config=...:init={init} holds no run: its config.json cannot be used "
      f"({error}); give the workdir of a finished one"
    ) from error
