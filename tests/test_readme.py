"""What the README and the configs print can be typed."""

import functools
import re
import shlex
from operator import getitem

import pytest
from documents import DOCUMENTS, blocks
from small import REPOSITORY

from cxrjax.config.config_files import load_config

CONFIGS = sorted((REPOSITORY / "configs").glob("*.py"))


def commands():
  """Every `python -m cxrjax.main ...` in a block (configs: indented), without its comment."""
  printed = [
    (path.name, block.text)
    for path in DOCUMENTS
    for block in blocks(path)
    if block.language == "bash"
  ]
  printed += [
    (path.name, "\n".join(re.findall(r"^    (.*)$", path.read_text(), re.M))) for path in CONFIGS
  ]
  for name, text in printed:
    text = text.replace("\\\n", " ")
    for found in re.findall(r"python -m cxrjax\.main.*?(?=; do$|$)", text, re.M):
      found = found.removesuffix('"') if found.count('"') % 2 else found  # inside of another
      flags = shlex.split(found, comments=True)[3:]
      if "configs/" in found:
        yield pytest.param(flags, id=f"{name}:{flags[0]}")


@pytest.mark.parametrize("flags", list(commands()))
def test_every_command_names_a_config_that_takes_its_arguments(flags):
  named = dict(f.removeprefix("--").split("=", 1) for f in flags)
  path, _, arg = named.pop("config").partition(":")
  config = load_config(REPOSITORY / path)(arg)
  for name in named:
    if name.startswith("config."):
      *parents, leaf = name.removeprefix("config.").split(".")
      functools.reduce(getitem, parents, config).get_ref(leaf)  # raises for a key that is not there
    else:
      assert name in ("workdir", "coordinator", "processes", "process", "trust"), name


def test_the_first_two_commands_install_and_run(repository):
  """The block that a newcomer copies: run the main job, run the tests."""
  first, second = blocks(repository / "README.md")[0].text.strip().splitlines()
  assert "pip install -e ." in first and "python -m cxrjax.main --config=configs/dino.py" in first
  assert 'pip install -e ".[test]"' in second and "python -m pytest" in second
  # Continuous integration calls that, and then what it leaves out.
  called = re.findall(r"^python -m pytest[^#\n]*", (repository / ".ci" / "run").read_text(), re.M)
  assert [line.strip() for line in called] == ["python -m pytest", "python -m pytest --all -m full"]
  assert second.endswith("&& python -m pytest")


def test_the_data_table_names_every_builder(repository):
  text = (repository / "README.md").read_text()
  for builder in repository.glob("tfds_builders/*/*_dataset_builder.py"):
    assert f"| `{builder.parent.name}" in text, builder.parent.name
    for file in ("README.md", "CITATIONS.bib", "TAGS.txt", "__init__.py"):
      assert (builder.parent / file).exists(), builder.parent / file


@pytest.mark.parametrize(
  "document",
  sorted(
    str(p.relative_to(REPOSITORY))
    for p in [
      *DOCUMENTS,
      REPOSITORY / "benchmarks/README.md",
      *REPOSITORY.glob("tfds_builders/*/README.md"),
    ]
  ),
)
def test_links_lead_somewhere(document, repository):
  path = repository / document
  text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
  targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
  targets += re.findall(r"(?:src|srcset)=\"([^\"]+)\"", text)
  for target in targets:
    if not target.startswith("http"):
      assert (path.parent / target).exists(), target
