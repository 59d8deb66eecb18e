"""`cxrjax COMMAND`, and configs by name."""

import sys

import pytest

from cxrjax import __main__ as commands
from cxrjax.config import config_files
from cxrjax.core.errors import UserError


@pytest.mark.parametrize(
  "name, given, flags",
  [
    (
      "train",
      ["dino:small,lr=1e-3", "--workdir=runs/a"],
      ["--config=dino:small,lr=1e-3", "--workdir=runs/a"],
    ),
    ("train", ["--config=dino"], ["--config=dino"]),
    ("audit", ["data=mini"], ["--config=audit:data=mini"]),
    ("audit", ["--workdir=runs/b"], ["--config=audit", "--workdir=runs/b"]),
    ("explain", ["runs=runs/a"], ["--config=explain:runs=runs/a"]),
    ("predict", ["--workdir=zoo:lungs", "films"], ["--workdir=zoo:lungs", "films"]),
  ],
)
def test_a_command_gives_its_module_flags(name, given, flags):
  assert commands.arguments(name, given) == flags


@pytest.mark.parametrize(
  "words, said",
  [
    (["trian"], "did you mean 'train'"),
    (["folder"], "configs, tfds_builders"),
    (["folder", "tests"], "configs, tfds_builders"),
  ],
)
def test_what_is_no_command(words, said, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["cxrjax", *words])
  with pytest.raises(UserError, match=said):
    commands.run()


def test_help_and_folders(monkeypatch, capsys, repository):
  for words in ([], ["--help"], ["folder", "configs"]):
    monkeypatch.setattr(sys, "argv", ["cxrjax", *words])
    commands.run()
  said = capsys.readouterr().out
  assert said.count("cxrjax train dino:small") == 2 and said.endswith(f"{repository / 'configs'}\n")


def test_configs_by_name_and_by_path(tmp_path, monkeypatch, repository):
  monkeypatch.chdir(tmp_path)
  file = repository / "configs" / "dino.py"
  found = config_files.with_config_path
  assert found(["x", "--config=dino:small,lr=1e-3"]) == ["x", f"--config={file}:small,lr=1e-3"]
  assert found(["x", "--config", "configs/dino.py:tiny"]) == ["x", f"--config={file}:tiny"]
  assert found(["x", "--config=dino", "--config.seed=1"]) == [
    "x",
    f"--config={file}",
    "--config.seed=1",
  ]
  for other in ("dyno", "configs/dyno.py:small"):
    with pytest.raises(UserError, match="did you mean 'dino'"):
      found(["x", f"--config={other}"])
  with pytest.raises(UserError, match=r"--config=mine/other\.py is no file"):
    found(["x", "--config=mine/other.py:small"])
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "dino.py").write_text("")  # a file that is called so goes first
  assert found(["x", "--config=configs/dino.py"]) == ["x", "--config=configs/dino.py"]
