"""The code blocks of the README and the docs, and a small world in which they run.

A block is run as it is printed; what it starts is made small by `small_commands.py`, whose table is
the only place where that happens. A block that cannot be run here stands behind a line

    <!-- not run: why -->
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
from PIL import Image
from small import HANGS, REPOSITORY

RUN = ("bash", "python")
SHOWN = ("text", "json", "csv")  # what a program prints, and files' layouts
DOCUMENTS = sorted(
  [REPOSITORY / "README.md", *REPOSITORY.glob("CONTRIBUTING.md"), *REPOSITORY.glob("docs/**/*.md")]
)
TOOLS = (
  "python",
  "cxrjax",
  "pip",
  "git",
  "ruff",
  "lint-imports",
  "mypy",
  "unzip",
  "tfds",
  "zensical",
  "jupyter",
)


@dataclasses.dataclass(frozen=True)
class Block:
  """One fenced block.

  Attributes:
    document: relative to the repository.
    line: of its first line of code, from 1.
    language: behind the fence.
    title: the file that it is, where the fence says `title="NAME"`.
    text: what is in it.
    reason: why it is not run, or None.
  """

  document: str
  line: int
  language: str
  title: str
  text: str
  reason: str | None

  @property
  def name(self) -> str:
    return f"{self.document}:{self.line}"


def blocks(path: pathlib.Path) -> list[Block]:
  """Every fenced block of a document, in order."""
  return parse(path.read_text(), str(path.relative_to(REPOSITORY)))


def parse(text: str, document: str) -> list[Block]:
  """The same of a text."""
  found, fence, reason, start = [], None, None, 0
  lines = text.splitlines()
  for number, line in enumerate(lines, 1):
    opened = re.fullmatch(r"\s*```(.*)", line)
    if opened and fence is None:
      fence, start = opened[1].strip(), number + 1
    elif opened:
      language, _, rest = fence.partition(" ")
      title = re.search(r'title="([^"]+)"', rest)
      found.append(
        Block(
          document,
          start,
          language,
          title[1] if title else "",
          "\n".join(lines[start - 1 : number - 1]) + "\n",
          reason,
        )
      )
      fence = reason = None
    elif fence is None:
      marked = re.fullmatch(r"<!-- not run: (.+) -->", line)
      reason = marked[1] if marked else reason if not line.strip() else None
  assert fence is None, f"{document}: a fence is not closed"
  return found


def radiographs(folder: pathlib.Path, each: int = 24, size: int = 48) -> pathlib.Path:
  """A folder as in the docs: `<split>/<class>/NAME.png` and `labels.csv`, drawn radiographs."""
  from cxrjax.data.sources.phantom import Source

  rows = ["path,label,patient,split,age,sex"]
  for split in ("train", "val", "test"):
    source, left = Source(split, n=8 * each, size=size), {"normal": each, "opacity": each}
    for i, record in enumerate(source):
      label = source.info.classes[int(np.argmax(record.labels))]
      if left[label]:
        left[label] -= 1
        path = folder / split / label / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(record.image[..., 0]).save(path)
        rows.append(
          f"{path.relative_to(folder)},{label},{record.patient},{split},{40 + i},{'FM'[i % 2]}"
        )
  (folder / "labels.csv").write_text("\n".join(rows) + "\n")
  return folder


def compiling(shared: pathlib.Path) -> dict[str, str]:
  """Variables with which programs are compiled once for all documents and notebooks."""
  return {"CXRJAX_CACHE": str(shared / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


class World:
  """A folder that looks like the repository, with commands that are made small on the way.

  Args:
    folder: of this document alone.
    shared: of all documents: finished runs, radiographs, compiled programs.
  """

  def __init__(self, folder: pathlib.Path, shared: pathlib.Path) -> None:
    self.folder = folder
    for name in (
      "configs",
      "cxrjax",
      "tests",
      "benchmarks",
      "tfds_builders",
      "docs",
      "colabs",
      "setup.py",
      "pyproject.toml",
      "README.md",
      "mkdocs.yml",
    ):
      if (REPOSITORY / name).exists():
        (folder / name).symlink_to(REPOSITORY / name)
    tools = folder / ".tools"
    tools.mkdir()
    for tool in TOOLS:
      (tools / tool).write_text(
        f'#!/bin/sh\nexec "{sys.executable}" "{REPOSITORY}/tests/small_commands.py" {tool} "$@"\n'
      )
      (tools / tool).chmod(0o755)
    self.radiographs = shared / "radiographs"
    shared.mkdir(parents=True, exist_ok=True)
    with open(shared / "lock", "a") as handle:
      fcntl.flock(handle, fcntl.LOCK_EX)
      if not self.radiographs.exists():
        radiographs(shared / "unready").rename(self.radiographs)
    self.environment = (
      os.environ
      | compiling(shared)
      | {
        "PATH": os.pathsep.join([str(tools), os.environ["PATH"]]),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CXRJAX_DOCS_SHARED": str(shared),
        "REPOSITORY": "https://example.org/cxrjax.git",
      }
    )

  def run(self, block: Block) -> None:
    """Runs a block to its end; an AssertionError says where it stands and what it said."""
    if block.title:
      (self.folder / block.title).parent.mkdir(parents=True, exist_ok=True)
      (self.folder / block.title).write_text(block.text)
      return
    if block.language == "python":
      text = self.in_python(block.text)
      command = [sys.executable, str(REPOSITORY / "tests/small_commands.py"), "code", text]
    else:
      command = ["bash", "-euo", "pipefail", "-c", block.text]
    done = subprocess.run(
      command,
      cwd=self.folder,
      env=self.environment,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      timeout=HANGS,
    )
    assert done.returncode == 0, f"{block.name} failed\n\n{block.text}\n{done.stdout[-3000:]}"

  def in_python(self, text: str) -> str:
    return text.replace("/my/radiographs", str(self.radiographs))
