"""Lowers steps for platforms that are not here."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import compile_ahead
import jax

from cxrjax.config.config_files import load_config

REPOSITORY = pathlib.Path(__file__).parent.parent


def get_config(text: str) -> dict[str, Any]:
  """`"dino:paper"` as `--config=configs/dino.py:paper` has it."""
  name, _, argument = text.partition(":")
  return load_config(name)(argument).to_dict()


def training_configs() -> list[str]:
  """The names of all configs that train one method."""
  names = [path.stem for path in sorted((REPOSITORY / "configs").glob("*.py"))]
  return [name for name in names if get_config(name)["task"] == "cxrjax.tasks.train"]


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
  """No program asks the machine that traces it what it is.

  cuDNN is not here either; see `compile_ahead.without_cudnn`.
  """
  asked = AssertionError("asked for this machine's devices while tracing")
  with (
    mock.patch.object(jax, "default_backend", side_effect=asked),
    mock.patch.object(jax, "devices", side_effect=asked),
    mock.patch.object(jax, "local_devices", side_effect=asked),
    compile_ahead.without_cudnn(),
  ):
    yield
