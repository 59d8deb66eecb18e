"""Builds objects from configs by dotted name, with errors that list the valid choices.

A name may come from an untrusted file, such as the `config.json` of somebody else's run. It is
therefore looked up in the subpackage for its kind, and nowhere else, before anything of it is
imported; and the object must be of that kind. Modules of the user's own have to be vouched for with
`trust`.
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

TRUST = "CXRJAX_TRUST"  # environment variable: the user's own modules, separated by commas
_DOTTED = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_NAME = re.compile(rf"({_DOTTED})(?::([A-Za-z_]\w*))?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class _Kind:
  """A kind of object that configs name.

  Attributes:
    package: subpackage whose modules define such objects.
    base: the base class, of `package.base`, that the class must have; empty for a function.
  """

  package: str
  base: str = ""

  def load_base(self) -> Any:
    """Imports the base class."""
    return getattr(importlib.import_module(f"{self.package}.base"), self.base)


_KINDS = {
  "Method": _Kind("cxrjax.methods", "Method"),
  "Model": _Kind("cxrjax.models", "Encoder"),
  "Recipe": _Kind("cxrjax.views", "Recipe"),
  "Evaluator": _Kind("cxrjax.evals", "Evaluator"),
  "Source": _Kind("cxrjax.data", "Source"),
  "Writer": _Kind("cxrjax.report.writers", "Writer"),
  "transform": _Kind("cxrjax.training"),
  "section": _Kind("cxrjax.report.sections"),
  "run": _Kind("cxrjax.tasks"),
}
_trusted: set[str] = set()


def trust(names: str | Iterable[str]) -> None:
  """Allows configs and runs to name the user's own modules, in this process.

  Args:
    names: modules or packages (with all their contents), `"my_package"` or several; a text may
      list them separated by commas.

  Raises:
    UserError: not the name of a module.
  """
  for text in [names] if isinstance(names, str) else names:
    for name in filter(None, (part.strip() for part in str(text).split(","))):
      if not re.fullmatch(_DOTTED, name, re.ASCII):
        raise UserError(f"--trust={name} is no name of a module; write it like --trust=my_package")
      _trusted.add(name)


def trusted() -> tuple[str, ...]:
  """Modules that the user has vouched for, through `trust` or the environment."""
  from_environment = (part.strip() for part in os.environ.get(TRUST, "").split(","))
  return tuple(sorted(_trusted | set(filter(None, from_environment))))


def locate(name: Any, attribute: str, key: str = "name") -> Callable[..., Any]:
  """Finds the factory that a dotted name refers to.

  Args:
    name: a module (`cxrjax.methods.dino`), which must define `attribute`, or a module's member
      (`my_package.my_file.MyMethod`, `my_package.my_file:MyMethod`).
    attribute: what to take from a module, one of `"Method"`, `"Model"`, `"Recipe"`,
      `"Evaluator"`, `"Source"`, `"Writer"` (of metrics), `"transform"` (of an optimizer; also
      those of optax), `"section"` (of a run's page) and `"run"` (a task).
    key: the config key to name in errors, e.g. `"config.method.name"`.

  Raises:
    UserError: this package has no `attribute` of that name, or the module is not part of it and
      the user has not vouched for it. None of its code was run.
  """
  match = _NAME.fullmatch(name) if isinstance(name, str) else None
  if match is None:
    raise UserError(f"{key}={name!r} is no name; give a dotted name such as 'cxrjax.methods.dino'")
  kind = _KINDS[attribute]
  path, member = match[1], match[2] or ""
  top = path.partition(".")[0]
  if top == "cxrjax":
    factory = _from_package(path, member or attribute, bool(member), kind, f"{key}={name!r}")
  elif top == "optax" and attribute == "transform" and not member:
    return _from_optax(path, f"{key}={name!r}")
  else:
    factory = _from_user(path, member, attribute, f"{key}={name!r}")
  if kind.base:
    _check_class(factory, kind, f"{key}={name!r}")
  elif not inspect.isfunction(factory) or (top == "cxrjax" and factory.__name__ != attribute):
    raise UserError(
      f"{key}={name!r} is not what is asked for here, which is a function {attribute!r}"
    )
  return factory


def _check_class(candidate: Any, kind: _Kind, named: str) -> None:
  """Raises a UserError unless an object is a class of a kind with all that it must define."""
  base = kind.load_base()
  is_subclass = inspect.isclass(candidate) and issubclass(candidate, base)
  missing = sorted(candidate.__abstractmethods__ if is_subclass else base.__abstractmethods__)
  if not is_subclass or missing:
    raise UserError(
      f"{named} is not what is asked for here, which is a subclass of {kind.package}.base."
      f"{kind.base} that defines {', '.join(missing)}"
    )


def _from_package(path: str, member: str, explicit: bool, kind: _Kind, named: str) -> Any:
  """Imports a name that a module of this package defines; checks its file names on the way."""
  words = path.split(".")
  if not f"{path}.".startswith(f"{kind.package}.") or path == kind.package:
    raise UserError(f"{named} is not in {kind.package}{_suggest_module(kind.package, words[-1])}")
  module: ModuleType = importlib.import_module(kind.package)
  remaining = words[kind.package.count(".") + 1 :]
  while remaining and hasattr(module, "__path__"):
    if remaining[0] not in {m.name for m in pkgutil.iter_modules(module.__path__)}:
      raise UserError(f"{named} cannot be found{_suggest_module(module.__name__, remaining[0])}")
    module = importlib.import_module(f"{module.__name__}.{remaining.pop(0)}")
  if remaining and not explicit:
    member = remaining.pop(0)
  attribute = vars(module).get(member)
  is_own = getattr(attribute, "__module__", None) == module.__name__
  if remaining or member.startswith("_") or not is_own:
    missing = ".".join([*remaining, member])
    raise UserError(
      f"{named} has no {missing!r} of its own{_suggest_module(kind.package, words[-1])}"
    )
  return attribute


def _from_user(path: str, member: str, attribute: str, named: str) -> Any:
  """Imports a name from a module that the user has vouched for."""
  top = path.partition(".")[0]
  if top in sys.stdlib_module_names:
    raise UserError(
      f"{named} is Python's own, which nothing here is made of; give a dotted name "
      "such as 'cxrjax.methods.dino'"
    )
  if not any(f"{path}.".startswith(f"{prefix}.") for prefix in trusted()):
    raise UserError(
      f"{named} is no part of cxrjax, and was not imported: if it is your own module, or you trust "
      f"it, add --trust={top} (in Python trust={top!r}; or set {TRUST}={top}); if not, give a "
      "dotted name such as 'cxrjax.methods.dino'"
    )
  outer, _, last = path.rpartition(".")
  module = _import(path, named)
  if module is None and outer and not member:
    module, member = _import(outer, named), last
  if module is None:
    raise UserError(f"{named} cannot be imported; is its folder on Python's path?")
  if not hasattr(module, member or attribute):
    raise UserError(f"{named} has no {member or attribute!r}")
  return getattr(module, member or attribute)


def _import(name: str, named: str) -> ModuleType | None:
  """Imports a module; None where none has that name."""
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name is None or not f"{name}.".startswith(f"{error.name}."):
      raise UserError(
        f"{named} imports {error.name!r}, which is not installed; install it"
      ) from error
    return None


def _from_optax(path: str, named: str) -> Callable[..., Any]:
  """Finds a public optax function that returns a gradient transformation."""
  import optax

  outer, _, name = path.rpartition(".")
  module = {"optax": optax, "optax.contrib": optax.contrib}.get(outer)
  valid = {
    member: function
    for member, function in vars(module or optax).items()
    if inspect.isfunction(function)
    and function.__module__.startswith("optax.")
    and not member.startswith("_")
    and "GradientTransformation" in str(function.__annotations__.get("return"))
  }
  if module is None or name not in valid:
    raise UserError(f"{named} is no transformation of optax{suggest(name, valid)}")
  return valid[name]


def _suggest_module(package: str, leaf: str) -> str:
  """Text for an error about an unknown module: the closest and all modules of the package."""
  path = importlib.import_module(package).__path__
  return suggest(leaf, [m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_")])


def build(spec: Mapping[str, Any], attribute: str, key: str, **extra: Any) -> Any:
  """Calls the factory named by `spec["name"]` with the rest of `spec` and `extra`.

  Args:
    spec: `name` and keyword arguments.
    attribute: the kind of factory, as in `locate`, e.g. `"Method"`.
    key: config key of the spec, e.g. `"config.method"`, for errors.
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
  """Validates keyword arguments: raises a UserError for the first one that `factory` lacks."""
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
  """Validates a regular expression: raises a UserError that names `key` if it is invalid."""
  if not isinstance(value, str):
    raise UserError(f"{key}: {value!r} is no text; give a regular expression in quotes")
  try:
    re.compile(value)
  except (re.error, RecursionError, OverflowError) as error:
    raise UserError(f"{key}: {value!r} is no regular expression: {error}") from error


def freeze(value: Any) -> Any:
  """Converts config values to plain Python: lists become tuples, mappings become dicts."""
  if isinstance(value, Mapping):
    return {k: freeze(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return tuple(freeze(v) for v in value)
  return value
