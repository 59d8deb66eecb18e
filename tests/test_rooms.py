"""Arrows between the rooms point one way, and only main and the tasks wire them."""

import ast

import pytest

MAY_IMPORT = {
  "core": set(),
  "data": set(),
  "views": set(),
  "models": set(),
  "losses": set(),
  "methods": {"views", "models", "losses"},
  "training": {"data", "methods", "models"},
  "metrics": set(),
  "evals": {"data", "models", "metrics", "explain"},
  "explain": {"models"},
  "report": {"metrics"},
}


def imports(path):
  """Rooms that a file imports from, also inside functions."""
  for node in ast.walk(ast.parse(path.read_text())):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "cxrjax":
      names = [f"cxrjax.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path} imports relatively"
      names = [node.module]
    for name in names:
      if name.startswith("cxrjax."):
        yield name.split(".")[1]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(room, repository):
  files = sorted((repository / "cxrjax" / room).rglob("*.py"))
  assert files
  for file in files:
    wrong = set(imports(file)) - MAY_IMPORT[room] - {room, "core"}
    assert not wrong, f"{file.relative_to(repository)} imports {sorted(wrong)}"


def test_every_room_has_rules(repository):
  rooms = {p.name for p in (repository / "cxrjax").iterdir()
           if p.is_dir() and not p.name.startswith("_") and any(p.rglob("*.py"))}
  assert rooms - {"tasks"} == set(MAY_IMPORT)


def test_training_needs_no_tensorflow_and_no_torch(repository):
  """The base program never imports them; only builders' own command line does."""
  for file in (repository / "cxrjax").rglob("*.py"):
    text = file.read_text()
    for word in ("import tensorflow as", "import tensorflow\n", "import torch"):
      assert word not in text, f"{file} has {word!r}"


def test_main_is_short(repository):
  assert len((repository / "cxrjax" / "main.py").read_text().splitlines()) < 100
