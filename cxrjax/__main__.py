"""`cxrjax COMMAND ...`: every command by one name.

cxrjax train dino:small,data=folder:DIR --workdir=runs/dino    python -m cxrjax.main --config=...
cxrjax audit data=folder:DIR                                   --config=audit:data=folder:DIR
cxrjax explain runs=runs/dino                                  --config=explain:runs=runs/dino
cxrjax predict --workdir=zoo:lungs FILES... --out=DIR          python -m cxrjax.predict
cxrjax export --workdir=runs/dino --out=FILE                   python -m cxrjax.export
cxrjax configs                                                 what can be trained, a line each
cxrjax folder tfds_builders                                    where data sets' builders lie
"""

from __future__ import annotations

import ast
import runpy
import sys

from cxrjax.config import config_files
from cxrjax.core import command, package_folders
from cxrjax.core.errors import UserError, suggest

MODULES = {
  "train": "cxrjax.main",
  "audit": "cxrjax.main",
  "explain": "cxrjax.main",
  "predict": "cxrjax.predict",
  "export": "cxrjax.export",
}
FOLDERS = ("configs", "tfds_builders")


def arguments(name: str, given: list[str]) -> list[str]:
  """Flags for the module of a command.

  `train` takes a config as its first argument, `audit` and `explain` the part after its colon.
  """
  if MODULES[name] != "cxrjax.main":
    return given
  first = given[:1] if given and not given[0].startswith("-") else []
  flags = given[len(first) :]
  if name == "train":
    return [*(f"--config={config}" for config in first), *flags]
  return [":".join([f"--config={name}", *first]), *flags]


def list_configs() -> str:
  """The configs of the package with the first line of each."""
  lines = []
  for name in config_files.config_names():
    file = package_folders.folder("configs") / f"{name}.py"
    purpose = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    lines.append(f"{name:18}{purpose.partition(chr(10))[0]}")
  return "\n".join([*lines, "", "cxrjax train NAME --help lists the keys of one.", ""])


def run() -> None:
  """Runs the command named by the first argument."""
  name, *args = sys.argv[1:] or ["--help"]
  if name in ("-h", "--help"):
    sys.stdout.write(f"{__doc__}\nEach explains itself with --help.\n")
    return
  if name == "folder":
    if len(args) != 1 or args[0] not in FOLDERS:
      raise UserError(f"cxrjax folder takes one of {', '.join(FOLDERS)}")
    sys.stdout.write(f"{package_folders.folder(args[0])}\n")
    return
  if name == "configs":
    sys.stdout.write(list_configs())
    return
  if name not in MODULES:
    known = suggest(name, [*MODULES, "configs", "folder"])
    raise UserError(f"{name!r} is no command of cxrjax{known}")
  sys.argv = [f"cxrjax {name}", *arguments(name, args)]
  runpy.run_module(MODULES[name], run_name="__main__", alter_sys=False)


def main() -> None:
  """Entry point of the program `cxrjax`."""
  command.run(run)


if __name__ == "__main__":
  main()
