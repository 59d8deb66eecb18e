"""Objects from configs by dotted name, with errors that list what would have been right.

A name may stand in a file that came from somebody else: a run's `config.json`, say. So it is looked
up in the part of this package that holds what is asked for, and nowhere else, before anything of it
is imported; what is found must be what is asked for. A module of the user's own needs the user's
word, `trust`.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from cxrjax.core.errors import UserError, suggest

TRUST = "CXRJAX_TRUST"  # in the environment: modules of the user's own, with commas between them
_WORDS = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_NAME = re.compile(rf"({_WORDS})(?::([A-Za-z_]\w*))?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class _Kind:
  """What an attribute of a module stands for.

  Attributes:
    package: of this program, whose modules have it.
    needs: methods of a class; empty for a function.
  """

  package: str
  needs: tuple[str, ...] = ()


_KINDS = {
  "Method": _Kind("cxrjax.methods", ("init", "loss", "after_update", "encoder_params")),
  "Model": _Kind("cxrjax.models", ("init", "encode")),
  "Recipe": _Kind("cxrjax.views", ("check", "__call__")),
  "Evaluator": _Kind("cxrjax.evals", ("load", "describe", "run")),
  "Source": _Kind("cxrjax.data", ("__len__", "__getitem__")),
  "transform": _Kind("cxrjax.training"),
  "run": _Kind("cxrjax.tasks"),
}
_trusted: set[str] = set()


def trust(names: str | Iterable[str]) -> None:
  """Takes the user's word that modules may be named by configs and runs, in this process.

  Args:
    names: of modules or packages (with all that is in them), `"my_package"` or several; one text
      may have commas between them.

  Raises:
    UserError: what is no name of a module.
  """
  for text in [names] if isinstance(names, str) else names:
    for name in filter(None, (part.strip() for part in str(text).split(","))):
      if not re.fullmatch(_WORDS, name, re.ASCII):
        raise UserError(f"--trust={name} is no name of a module; write it like --trust=my_package")
      _trusted.add(name)


def trusted() -> tuple[str, ...]:
  """Modules that the user has vouched for, with `trust` or in the environment."""
  given = (part.strip() for part in os.environ.get(TRUST, "").split(","))
  return tuple(sorted(_trusted | set(filter(None, given))))


def locate(name: Any, attribute: str, key: str = "name") -> Callable[..., Any]:
  """The factory behind a dotted name.

  Args:
    name: a module (`cxrjax.methods.dino`), which must define `attribute`, or a module's member
      (`my_package.my_file.MyMethod`, `my_package.my_file:MyMethod`).
    attribute: what to take from a module, one of `"Method"`, `"Model"`, `"Recipe"`,
      `"Evaluator"`, `"Source"`, `"transform"` (of an optimiser; those of optax as well) and
      `"run"` (a task).
    key: the config key to name in errors, e.g. `"config.method.name"`.

  Raises:
    UserError: this package has nothing of that name that is a `attribute`, or it is a module of
      somebody else's that the user has not vouched for. Nothing of it was run.
  """
  match = _NAME.fullmatch(name) if isinstance(name, str) else None
  if match is None:
    raise UserError(f"{key}={name!r} is no name; give a dotted name such as 'cxrjax.methods.dino'")
  kind = _KINDS[attribute]
  path, member = match[1], match[2] or ""
  top = path.partition(".")[0]
  if top == "cxrjax":
    found = _ours(path, member or attribute, bool(member), kind, f"{key}={name!r}")
  elif top == "optax" and attribute == "transform" and not member:
    return _of_optax(path, f"{key}={name!r}")
  else:
    found = _own(path, member, attribute, f"{key}={name!r}")
  if not _fits(found, kind) or (top == "cxrjax" and not kind.needs and found.__name__ != attribute):
    wanted = f"a class with {', '.join(kind.needs)}" if kind.needs else f"a function {attribute!r}"
    raise UserError(f"{key}={name!r} is not what is asked for here, which is {wanted}")
  return found


def _fits(found: Any, kind: _Kind) -> bool:
  """Whether an object is what a kind asks for."""
  if not kind.needs:
    return inspect.isfunction(found)
  return (
    inspect.isclass(found)
    and not getattr(found, "_is_protocol", False)
    and all(any(need in vars(base) for base in found.__mro__[:-1]) for need in kind.needs)
  )


def _ours(path: str, member: str, apart: bool, kind: _Kind, named: str) -> Any:
  """What a module of this package defines itself; only its files are looked at on the way there."""
  words = path.split(".")
  if not f"{path}.".startswith(f"{kind.package}.") or path == kind.package:
    raise UserError(f"{named} is not in {kind.package}{_beside(kind.package, words[-1])}")
  module: ModuleType = importlib.import_module(kind.package)
  rest = words[kind.package.count(".") + 1 :]
  while rest and hasattr(module, "__path__"):
    if rest[0] not in {m.name for m in pkgutil.iter_modules(module.__path__)}:
      raise UserError(f"{named} cannot be found{_beside(module.__name__, rest[0])}")
    module = importlib.import_module(f"{module.__name__}.{rest.pop(0)}")
  if rest and not apart:
    member = rest.pop(0)
  found = vars(module).get(member)
  if rest or member.startswith("_") or getattr(found, "__module__", None) != module.__name__:
    raise UserError(
      f"{named} has no {'.'.join([*rest, member])!r} of its own{_beside(kind.package, words[-1])}"
    )
  return found


def _own(path: str, member: str, attribute: str, named: str) -> Any:
  """What a module that the user has vouched for holds."""
  top = path.partition(".")[0]
  if top in sys.stdlib_module_names:
    raise UserError(
      f"{named} is Python's own, which nothing here is made of; give a dotted name "
      "such as 'cxrjax.methods.dino'"
    )
  if not any(f"{path}.".startswith(f"{word}.") for word in trusted()):
    raise UserError(
      f"{named} is no part of cxrjax, and was not imported: if it is your own module, or you trust "
      f"it, add --trust={top} (in Python trust={top!r}; or set {TRUST}={top}); if not, give a "
      "dotted name such as 'cxrjax.methods.dino'"
    )
  outer, _, last = path.rpartition(".")
  module = _imported(path, named)
  if module is None and outer and not member:
    module, member = _imported(outer, named), last
  if module is None:
    raise UserError(f"{named} cannot be imported; is its folder on Python's path?")
  if not hasattr(module, member or attribute):
    raise UserError(f"{named} has no {member or attribute!r}")
  return getattr(module, member or attribute)


def _imported(name: str, named: str) -> ModuleType | None:
  """A module; None where there is none of that name."""
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name is None or not f"{name}.".startswith(f"{error.name}."):
      raise UserError(
        f"{named} imports {error.name!r}, which is not installed; install it"
      ) from error
    return None


def _of_optax(path: str, named: str) -> Callable[..., Any]:
  """One of optax's public functions that give a transformation of gradients."""
  import optax

  outer, _, name = path.rpartition(".")
  room = {"optax": optax, "optax.contrib": optax.contrib}.get(outer)
  valid = {
    n: f
    for n, f in vars(room or optax).items()
    if inspect.isfunction(f)
    and f.__module__.startswith("optax.")
    and not n.startswith("_")
    and "GradientTransformation" in str(f.__annotations__.get("return"))
  }
  if room is None or name not in valid:
    raise UserError(f"{named} is no transformation of optax{suggest(name, valid)}")
  return valid[name]


def _beside(package: str, leaf: str) -> str:
  """The modules of a package, for an error about another one."""
  path = importlib.import_module(package).__path__
  return suggest(leaf, [m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_")])


def build(spec: Mapping[str, Any], attribute: str, key: str, **extra: Any) -> Any:
  """Calls the factory that `spec["name"]` names with the rest of `spec` and `extra`.

  Args:
    spec: `name` and keyword arguments.
    attribute: what a module of that package defines, e.g. `"Method"`.
    key: where the spec stands in the config, e.g. `"config.method"`; errors name it.
    **extra: arguments from the program, not from the user.

  Raises:
    UserError: unknown name, or a keyword the factory does not take (the valid ones are listed).
  """
  if "name" not in spec:
    raise UserError(f"{key}.name is missing; give a dotted name such as 'cxrjax.methods.dino'")
  factory = locate(spec["name"], attribute, f"{key}.name")
  options = {k: freeze(v) for k, v in spec.items() if k != "name"}
  check_keywords(factory, options, key, hidden=extra)
  return factory(**options, **extra)


def check_keywords(
  factory: Callable[..., Any], options: Mapping[str, Any], key: str, hidden: Iterable[str] = ()
) -> None:
  """Raises a UserError for the first keyword that `factory` does not take."""
  if dataclasses.is_dataclass(factory):
    valid = {f.name for f in dataclasses.fields(factory) if f.init}
  else:
    parameters = inspect.signature(factory).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
      return
    valid = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
  valid -= set(hidden)
  for name in options:
    if name not in valid:
      raise UserError(f"{key}.{name} is not an option{suggest(name, valid)}")


def check_regex(value: Any, key: str) -> None:
  """Raises a UserError that names `key` where `value` is no regular expression."""
  if not isinstance(value, str):
    raise UserError(f"{key}: {value!r} is no text; give a regular expression in quotes")
  try:
    re.compile(value)
  except (re.error, RecursionError, OverflowError) as error:
    raise UserError(f"{key}: {value!r} is no regular expression: {error}") from error


def freeze(value: Any) -> Any:
  """Config values as hashable Python: lists become tuples; mappings become plain dicts."""
  if isinstance(value, Mapping):
    return {k: freeze(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return tuple(freeze(v) for v in value)
  return value
