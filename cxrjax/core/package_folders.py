"""Folders at the top of the repository, which an installed package contains."""

from __future__ import annotations

import pathlib

PACKAGE = pathlib.Path(__file__).parents[1]


def folder(name: str) -> pathlib.Path:
  """Path of `configs` or `tfds_builders`, in a checkout or an installed package."""
  inside = PACKAGE / name
  return inside if inside.is_dir() else PACKAGE.parent / name
