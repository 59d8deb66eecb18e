"""Packages; everything else is in pyproject.toml."""

from setuptools import find_namespace_packages, setup

FOLDERS = ("configs", "tfds_builders")  # at the top of the repository, within the installed package
setup(
  packages=find_namespace_packages(include=["cxrjax", "cxrjax.*"])
  + [f"cxrjax.{name}" for name in find_namespace_packages(include=[*FOLDERS, "tfds_builders.*"])],
  package_dir={f"cxrjax.{name}": name for name in FOLDERS},
)
