"""What the README and the configs print can be typed."""

import importlib.util
import re
import shlex

import pytest
from small import REPOSITORY

DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")),
             *sorted((REPOSITORY / "configs").glob("*.py"))]


def commands():
  """Every `python -m cxrjax.main ...` in an indented block, without its comment."""
  for document in DOCUMENTS:
    text = document.read_text().replace("\\\n", " ")
    for found in re.findall(r"^    .*?(python -m cxrjax\.main.*)$", text, re.M):
      flags = shlex.split(found, comments=True)[3:]
      yield pytest.param(flags, id=f"{document.name}:{flags[0]}")


@pytest.mark.parametrize("flags", list(commands()))
def test_every_command_names_a_config_that_takes_its_arguments(flags):
  named = dict(f.removeprefix("--").split("=", 1) for f in flags)
  path, _, arg = named.pop("config").partition(":")
  spec = importlib.util.spec_from_file_location("config", REPOSITORY / path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(arg)
  for name in named:
    if name.startswith("config."):
      config.get_ref(name.removeprefix("config."))  # raises for a key that is not there
    else:
      assert name in ("workdir", "coordinator", "processes", "process"), name


def test_the_first_two_commands_install_and_run(repository):
  """The block that a newcomer copies: run the main job, run the tests."""
  block = re.search(r"\n\n((?:    .*\n)+)", (repository / "README.md").read_text())[1]
  first, second = block.strip().splitlines()
  assert "pip install -e ." in first and "python -m cxrjax.main --config=configs/dino.py" in first
  assert 'pip install -e ".[test]"' in second and "python -m pytest" in second
  assert "python -m pytest" in (repository / ".ci" / "run").read_text()


def test_the_data_table_names_every_builder(repository):
  text = (repository / "README.md").read_text()
  for builder in repository.glob("tfds_builders/*/*_dataset_builder.py"):
    assert f"](tfds_builders/{builder.parent.name})" in text, builder.parent.name
    for file in ("README.md", "CITATIONS.bib", "TAGS.txt", "__init__.py"):
      assert (builder.parent / file).exists(), builder.parent / file


@pytest.mark.parametrize("document", [
  "README.md", "benchmarks/README.md", "docs/comparison.md", "docs/weights.md", *(
    str(p.relative_to(REPOSITORY)) for p in sorted(REPOSITORY.glob("tfds_builders/*/README.md")))])
def test_links_lead_somewhere(document, repository):
  path = repository / document
  for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
    if not target.startswith("http"):
      assert (path.parent / target).exists(), target
