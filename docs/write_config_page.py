"""Writes config.md, the page with every key of every config: `python docs/write_config_page.py`."""

from __future__ import annotations

import pathlib

from cxrjax.config import config_files, describe, overrides, presets
from cxrjax.core import package_folders
from cxrjax.core.errors import UserError

PRESETS = ("small", "paper")
# Keys that are the same for all configs that train, and the config that shows them.
SHARED = ("data", "optimizer", "checkpoint", "health", "explain", "mesh", "init", "evals")
EXAMPLE = "simclr"
EVALUATORS = ("simclr", "finetune", "segment")  # others have the same
# What these need, to be a config at all.
NEEDED = {"explain": "runs=A", "compare_runs": "runs=A+B"}
# Left out: paths, and what a study hands on.
HIDDEN = ("folder", "methods", "inits", "stages", "measure", "arg", "data.options", "options")

HEAD = """# The config

A config is a tree of keys. `--print_config` prints the whole of it, with where each value comes
from, as a file that runs again; a run keeps that file as `config.py` in its workdir. `--help` lists
the keys.

```bash
python -m cxrjax.main --config=dino:small,lr=1e-3 --print_config
python -m cxrjax configs
```

After the colon stand presets (`small`, `paper`, `strong`, `tiny`) and keys:
`dino:small,method.student_temp=0.05`. As a flag a key is `--config.method.student_temp=0.05`; the
last one counts. A number for a schedule makes it constant: `method.teacher_temp=0.05`. Shared
values are set once: `image_size`, and any key that follows it, changes crops, positions and
evaluators together. A key that does not exist is an error that names the nearest. An option of a
source is a key of `data`: `data.csv=labels.csv`. These are short for keys:

{aliases}

In the tables, `small` and `paper` are shown where they differ from the default. Written by
`docs/write_config_page.py` from the docstrings of the code.
"""


def values(name: str, preset: str) -> dict[str, describe.Key]:
  """Keys of a config by name; empty where it has no such preset."""
  argument = ",".join(filter(None, [preset, NEEDED.get(name)]))
  try:
    return {key.name: key for key in describe.describe([f"--config={name}:{argument}"])}
  except UserError:
    if not preset:
      raise
    return {}


def page() -> str:
  """The page."""
  sections = [HEAD.format(aliases=aliases()), "## What all that train share\n"]
  common = {
    name for name in values(EXAMPLE, "") if "." not in name or name.startswith(tuple(SHARED))
  }
  sections.append(table(EXAMPLE, lambda name: name in common))
  for config in config_files.config_names():
    is_training = overrides.resolve(
      [f"--config={config}:{NEEDED.get(config, '')}"]
    )["task"] == "cxrjax.tasks.train"  # fmt: skip
    hidden = common if is_training else frozenset()
    others = () if not is_training or config in EVALUATORS else ("evals.",)
    rows = table(config, lambda name, hidden=hidden, others=others: not (
      name in hidden or name.startswith(others)
    ))  # fmt: skip
    sections.append(f"## {config}\n\n{purpose(config)}\n")
    sections.append(rows)
  return "\n".join(sections)


def aliases() -> str:
  """A row for each alias with the keys that it sets."""
  rows = [
    f"| `{name}` | {', '.join(f'`{key}`' for key in keys)} |"
    for name, keys in presets.ALIASES.items()
  ]
  return "\n".join(["| short | sets |", "|---|---|", *rows])


def purpose(config: str) -> str:
  """First line of the config's docstring."""
  file = package_folders.folder("configs") / f"{config}.py"
  return file.read_text(encoding="utf-8").splitlines()[0].strip('"')


def table(config: str, wanted) -> str:
  """A row for each key that is wanted: name, meaning, and the value in each preset."""
  presets = {preset: values(config, preset) for preset in ("", *PRESETS)}
  used = ["", *(preset for preset in PRESETS if presets[preset])]
  lines = [
    f"| key | | {' | '.join(preset or 'default' for preset in used)} |",
    f"|---|---|{'---|' * len(used)}",
  ]
  names = dict.fromkeys(name for preset in used for name in presets[preset])
  for name in names:
    if name in HIDDEN or name.startswith(tuple(f"{hidden}." for hidden in HIDDEN)):
      continue
    if wanted(name):
      keys = [presets[preset].get(name) for preset in used]
      meaning = next(key.meaning for key in keys if key is not None)
      cells = [cell(key, keys[0] if i else None) for i, key in enumerate(keys)]
      lines.append(f"| `{name}` | {escaped(meaning)} | {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def cell(key: describe.Key | None, default: describe.Key | None) -> str:
  """A value; empty where it is the default's, or does not exist."""
  if key is None or (default is not None and key.value == default.value):
    return ""
  value = repr(key.value)
  return f"`{value.replace('|', chr(92) + '|')}`" if len(value) < 60 else "(see the file)"


def escaped(text: str) -> str:
  return text.rstrip(".").replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


if __name__ == "__main__":
  pathlib.Path(__file__).with_name("config.md").write_text(page(), encoding="utf-8")
