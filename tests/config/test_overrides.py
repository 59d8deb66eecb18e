"""Flags over a config, parsed once for the command and for studies."""

import pytest

from cxrjax.config import overrides
from cxrjax.core.errors import UserError

CONFIG = """from ml_collections import ConfigDict
def get_config(arg=""):
  return ConfigDict({"arg": arg, "seed": 0, "a": {
    "rate": 0.1, "name": "x", "pairs": ((1, "2 %"),), "schedule": {"start": 1.0}, "prob": (1.0,)}})
"""


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "config.py"
  path.write_text(CONFIG)
  return path


def test_flags_make_the_config(file):
  found = overrides.resolve(
    [
      f"--config={file}:small,b=1",
      "--config.a.rate=1e-3",
      "--config.a.name=",
      "--config.a.pairs=((3, '4 %'),)",
      "--config.a.prob=0.5",
    ]
  )
  assert found == {
    "arg": "small,b=1",
    "seed": 0,
    "a": {
      "rate": 1e-3,
      "name": "",
      "pairs": ((3, "4 %"),),
      "schedule": {"start": 1.0},
      "prob": (0.5,),
    },
  }


@pytest.mark.parametrize(
  "flag, said",
  [
    ("--config.a.rat=1", "rate"),
    ("--config.seed=1.5", "seed"),
    ("--config.seed=x", "seed"),
    ("--config.a.schedule=fast", "schedule"),
  ],
)
def test_a_wrong_key_or_type_is_named(file, flag, said):
  with pytest.raises(UserError, match=said):
    overrides.resolve([f"--config={file}", flag])


def test_a_config_that_is_not_there():
  with pytest.raises(UserError, match=r"--config=none\.py is no file"):
    overrides.resolve(["--config=none.py"])
