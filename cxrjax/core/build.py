"""Objects from configs by dotted name, with errors that list what would have been right."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cxrjax.core.errors import UserError


def suggest(word: str, valid: Iterable[str]) -> str:
  """`; did you mean 'x'?` where something close exists, then the whole list."""
  valid = sorted(valid)
  close = difflib.get_close_matches(word, valid, n=1)
  hint = f"; did you mean {close[0]!r}?" if close else ""
  return f"{hint} valid: {', '.join(valid)}" if hint else f"; valid: {', '.join(valid)}"


def locate(name: str, attribute: str, key: str = "name") -> Callable[..., Any]:
  """The factory behind a dotted name.

  Args:
    name: a module (`cxrjax.methods.dino`), which must define `attribute`, or a module's member
      (`my_package.my_file.MyMethod`).
    attribute: what to take from a module, e.g. `"Method"`.
    key: the config key to name in errors, e.g. `"config.method.name"`.

  Raises:
    UserError: nothing importable has that name, or it has no such attribute.
  """
  module_name, member = name, attribute
  try:
    module = importlib.import_module(module_name)
  except ModuleNotFoundError as error:
    if error.name is None or not (name + ".").startswith(error.name + "."):
      raise UserError(
        f"{key}={name!r} imports {error.name!r}, which is not installed; install it") from error
    module_name, _, member = name.rpartition(".")
    try:
      module = importlib.import_module(module_name) if module_name else None
    except ModuleNotFoundError as outer:
      raise UserError(f"{key}={name!r} cannot be imported{_siblings(name)}") from outer
  if module is None or not hasattr(module, member):
    raise UserError(f"{key}={name!r} has no {member!r}{_siblings(name)}")
  return getattr(module, member)


def _siblings(name: str) -> str:
  """The modules beside a misspelt one, for the error message."""
  import pkgutil

  package, _, leaf = name.rpartition(".")
  try:
    path = importlib.import_module(package).__path__ if package else None
  except (ModuleNotFoundError, AttributeError):
    path = None
  if path is None:
    return "; give a dotted name such as 'cxrjax.methods.dino'"
  found = [m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_")]
  return suggest(leaf, found)


def build(spec: Mapping[str, Any], attribute: str, key: str, **extra: Any) -> Any:
  """Calls the factory that `spec["name"]` names with the rest of `spec` and `extra`.

  Args:
    spec: `name` and keyword arguments.
    attribute: what a module of that room defines, e.g. `"Method"`.
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
    factory: Callable[..., Any], options: Mapping[str, Any], key: str,
    hidden: Iterable[str] = ()) -> None:
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


def freeze(value: Any) -> Any:
  """Config values as hashable Python: lists become tuples; mappings become plain dicts."""
  if isinstance(value, Mapping):
    return {k: freeze(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return tuple(freeze(v) for v in value)
  return value
