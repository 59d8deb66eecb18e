"""Every code block of README, CONTRIBUTING and docs runs."""

import collections
import dataclasses
import re

import pytest
from documents import DOCUMENTS, RUN, SHOWN, World, blocks, parse, radiographs
from small import REPOSITORY

# Blocks that are not run, by document, with the marks that say why.
NOT_RUN = {
  "docs/weights.md": ["needs a file of weights"],
  "docs/zoo.md": ["makes what is in the package"] * 2,
  "docs/how-to/fit-a-device.md": ["needs the CUDA plugin, 5 GB"],
  "docs/how-to/multi-host.md": [
    "needs two machines",
    "needs a cluster",
    "needs a TPU pod",
    "needs two machines",
    "needs a cluster",
  ],
}


# In the quick tier: files of one's own, and a run.
QUICK = ("docs/how-to/own-method.md",)


def of_a_tier(path):
  name = str(path.relative_to(REPOSITORY))
  return pytest.param(path, id=name, marks=() if name in QUICK else pytest.mark.full)


@pytest.mark.parametrize("path", list(map(of_a_tier, DOCUMENTS)))
def test_blocks_run(path, tmp_path, shared):
  world = World(tmp_path, shared)
  for block in blocks(path):
    if block.language in RUN and block.reason is None:
      world.run(block)


@pytest.mark.full
def test_the_readmes_five_lines_run_on_a_flat_folder_with_a_table(tmp_path):
  flat = tmp_path / "shared" / "radiographs"
  folders = radiographs(tmp_path / "folders")
  flat.mkdir(parents=True)
  head, *rows = (folders / "labels.csv").read_text().splitlines()
  for k, row in enumerate(rows):
    path, comma, rest = row.partition(",")
    (folders / path).rename(flat / f"{k}.png")
    rows[k] = f"{k}.png{comma}{rest}"
  (flat / "labels.csv").write_text("\n".join([head, *rows]) + "\n")
  (block,) = (b for b in blocks(REPOSITORY / "README.md") if b.text.startswith("DATA="))
  table = "folder:/my/radiographs,data.csv=labels.csv"
  data, _, commands = block.text.partition("\n")
  assert table in data and len(commands.splitlines()) == 5
  (tmp_path / "world").mkdir()
  World(tmp_path / "world", tmp_path / "shared").run(
    dataclasses.replace(block, text=f"DATA={table}\n{commands}")
  )


def test_what_is_not_run_is_known():
  found = collections.defaultdict(list)
  for path in DOCUMENTS:
    for block in blocks(path):
      if block.reason is not None:
        assert block.language in RUN, f"{block.name}: {block.language} is never run"
        found[block.document].append(block.reason)
  assert dict(found) == NOT_RUN


def test_every_block_has_a_language_and_none_is_hidden():
  for path in DOCUMENTS:
    fenced = False
    lines = path.read_text().splitlines()
    for number, (before, line) in enumerate(zip(["", *lines], lines, strict=False), 1):
      if re.match(r"\s*```", line):
        fenced = not fenced
      hidden = not fenced and line.startswith("    ") and not before.strip()
      assert not hidden, f"{path.name}:{number} is an indented block, which is not run: fence it"
    for block in blocks(path):
      assert block.language in (*RUN, *SHOWN), f"{block.name}: {block.language!r}"


def test_a_failing_block_fails(tmp_path, shared):
  """Of a text, of a program with a wrong flag, of Python."""
  for number, text in enumerate(
    (
      "```bash\nfalse\n```",
      "```bash\npython -m cxrjax.main --config=configs/dino.py:speed=9\n```",
      "```bash\npip install -e '.[tset]'\n```",
      "```python\nassert 1 == 2\n```",
    )
  ):
    block = parse(text, "none.md")[0]
    (tmp_path / str(number)).mkdir()
    with pytest.raises(AssertionError, match=r"none.md:2 failed"):
      World(tmp_path / str(number), shared).run(block)
