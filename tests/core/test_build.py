"""Building by dotted name: right ones are built, wrong ones named with what would be right."""

import dataclasses

import pytest

from cxrjax.core.args import parse_arg
from cxrjax.core.build import build, locate
from cxrjax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Thing:
  width: int
  hidden: int = 3


HERE = f"{__name__}.Thing"


def test_builds_a_member_and_a_modules_attribute(monkeypatch):
  import sys
  import types
  module = types.ModuleType("a_users_module")
  module.Thing = Thing
  monkeypatch.setitem(sys.modules, "a_users_module", module)
  assert build({"name": "a_users_module", "width": 2}, "Thing", "config.x") == Thing(2)
  assert build({"name": "a_users_module.Thing", "width": 2}, "Other", "config.x") == Thing(2)
  with pytest.raises(UserError, match=r"config\.x\.widht is not an option; did you mean 'width'"):
    build({"name": "a_users_module", "widht": 2}, "Thing", "config.x")
  # An argument from the program is not the user's to give.
  with pytest.raises(UserError, match=r"config\.x\.hidden is not an option; valid: width"):
    build({"name": "a_users_module", "width": 1, "hidden": 2}, "Thing", "config.x", hidden=4)


@pytest.mark.parametrize("name,hint", [
  ("cxrjax.methods.dyno", "did you mean 'dino'"),
  ("cxrjax.methods.dino.Nothing", "has no 'Nothing'"),
  ("nowhere", "give a dotted name"), ("cxrjax.core", "has no 'Method'")])
def test_unknown_names(name, hint):
  with pytest.raises(UserError, match=hint):
    locate(name, "Method", "config.method.name")


def test_a_missing_dependency_is_not_a_misspelt_name(tmp_path, monkeypatch):
  (tmp_path / "needs_more.py").write_text("import surely_not_installed\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  with pytest.raises(UserError, match="'surely_not_installed', which is not installed"):
    locate("needs_more", "Method")


def test_parse_arg():
  got = parse_arg("tiny,lr=1,data=folder:/a b/c,model=16", tiny=False, lr=0.5, data="x", model="S")
  assert got == {"tiny": True, "lr": 1.0, "data": "folder:/a b/c", "model": "16"}
  assert parse_arg(None, tiny=False) == {"tiny": False}
  with pytest.raises(UserError, match="did you mean 'model'"):
    parse_arg("modle=S", model="S")
  with pytest.raises(UserError, match="must be of type int"):
    parse_arg("n=big", n=3)
