"""One process a folder, one config a folder."""

import subprocess
import sys

import jax.numpy as jnp
import pytest

from cxrjax.core.errors import UserError
from cxrjax.training.checkpoint import Checkpoints
from cxrjax.training.workdir import differences, in_use, locked, settle_config


def test_a_second_process_is_refused(tmp_path):
  script = (
    "import pathlib, sys; from cxrjax.training.workdir import locked\n"
    "with locked(pathlib.Path(sys.argv[1])): print('mine')"
  )
  with (
    locked(tmp_path),
    pytest.raises(UserError, match=r"is in use by process [0-9]+"),
    locked(tmp_path),
  ):
    pass
  with locked(tmp_path):
    other = subprocess.run(
      [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True
    )
    assert "in use by process" in other.stderr
  other = subprocess.run(
    [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True
  )
  assert other.stdout.strip() == "mine"


def test_whether_a_folder_is_in_use(tmp_path):
  assert not in_use(tmp_path)
  with locked(tmp_path):
    assert in_use(tmp_path)
  assert not in_use(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot be written"), locked(tmp_path / "file" / "run"):
    pass


def test_a_changed_config_is_refused_by_name(tmp_path):
  config = {"a": 1, "views": {"size": (1, 2), "flip": 0.5}}
  assert settle_config(tmp_path, {"a": 2}) is False
  assert settle_config(tmp_path, config) is False  # nothing was begun with the other one
  (tmp_path / "run.json").write_text("{}")
  assert settle_config(tmp_path, config) is True
  with pytest.raises(
    UserError,
    match=r"config\.views\.flip: 0\.5 -> 0\.0; .*config\.b: \(absent\)"
    "|config.b.*config.views.flip",
  ):
    settle_config(tmp_path, {"a": 1, "b": 2, "views": {"size": (1, 2), "flip": 0.0}})


def test_a_config_that_cannot_be_read_is_refused(tmp_path):
  settle_config(tmp_path, {"a": 1})
  (tmp_path / "run.json").write_text("{}")
  (tmp_path / "config.json").write_bytes(b'{"a": "\xff"}')
  with pytest.raises(UserError, match=r"config.json cannot be read \(it .*choose another"):
    settle_config(tmp_path, {"a": 1})


def test_differences():
  assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 2}}) == [
    "config.a.b: 1 -> 2",
    "config.c: 2 -> (absent)",
  ]


def test_checkpoints_hold_to_their_config(tmp_path):
  """Whatever became of config.json."""
  config = {"lr": 0.1, "views": {"size": (1, 2)}}
  assert settle_config(tmp_path, config) is False
  checkpoints = Checkpoints(tmp_path / "checkpoints", config=config)
  checkpoints.save(1, {"a": jnp.zeros(3)})
  checkpoints.close()
  assert settle_config(tmp_path, config) is True
  (tmp_path / "config.json").unlink()
  message = r"checkpoints in .* were trained with another config \(config\.lr: 0\.1 -> 0\.2\)"
  with pytest.raises(UserError, match=message):
    settle_config(tmp_path, config | {"lr": 0.2})
  (tmp_path / "config.json").write_text('{"lr": 0.2, "views": {"size": [1, 2]}}')
  with pytest.raises(UserError, match=message):
    settle_config(tmp_path, config | {"lr": 0.2})
  (tmp_path / "config.json").unlink()
  assert settle_config(tmp_path, config) is True  # the same one goes on, and is written again
  assert settle_config(tmp_path, config) is True and (tmp_path / "config.json").exists()
