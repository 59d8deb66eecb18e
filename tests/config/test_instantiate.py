"""Building by dotted name: right ones are built, others are refused before any of them is run."""

import dataclasses
import importlib
import pkgutil
import sys
import types

import optax
import pytest

from cxrjax.config import instantiate
from cxrjax.config.args import parse_arg
from cxrjax.config.instantiate import locate
from cxrjax.core.errors import UserError
from cxrjax.views import base


@dataclasses.dataclass(frozen=True)
class Recipe(base.Recipe):
  width: int
  hidden: int = 3

  def __call__(self, images):
    return images


@pytest.fixture
def module(monkeypatch):
  """A user's own module, whom the user trusts."""
  made = types.ModuleType("a_users_module")
  made.Recipe = made.Other = Recipe
  monkeypatch.setitem(sys.modules, "a_users_module", made)
  monkeypatch.setenv(instantiate.TRUST, "x, a_users_module")
  return made


def test_builds_a_member_and_a_modules_attribute(module):
  for name in ("a_users_module", "a_users_module.Other", "a_users_module:Other"):
    assert instantiate.build({"name": name, "width": 2}, "Recipe", "config.x") == Recipe(2)
  with pytest.raises(UserError, match=r"config\.x\.widht is not an option; did you mean 'width'"):
    instantiate.build({"name": "a_users_module", "widht": 2}, "Recipe", "config.x")
  # An argument from the program is not the user's to give.
  with pytest.raises(UserError, match=r"config\.x\.hidden is not an option; valid: width"):
    instantiate.build(
      {"name": "a_users_module", "width": 1, "hidden": 2}, "Recipe", "config.x", hidden=4
    )


def test_what_is_found_must_be_what_is_asked_for(module):
  module.Half = type("Half", (base.Recipe,), {})
  module.Alike = type("Alike", (), {"check": None, "__call__": None})
  module.made = lambda: None
  for member, kind, lacks in (
    ("Half", "Recipe", "__call__"),
    ("Alike", "Recipe", r"a subclass of cxrjax\.views\.base\.Recipe"),
    ("made", "Recipe", "__call__"),
    ("Recipe", "Method", "init, loss"),
    ("Recipe", "run", "function"),
    ("__name__", "Recipe", "__call__"),
    ("__spec__", "Recipe", "__call__"),
  ):
    with pytest.raises(UserError, match=rf"not what is asked for here, which is .*{lacks}"):
      locate(f"a_users_module.{member}", kind)
  with pytest.raises(UserError, match="has no 'Nothing'"):
    locate("a_users_module:Nothing", "Recipe")
  assert locate("a_users_module.made", "run") is module.made


def test_trust_is_the_users_word(tmp_path, monkeypatch):
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "views.py").write_text(
    "from test_of_build import Recipe, ran; ran.append(1)"
  )
  ran = []
  monkeypatch.setitem(sys.modules, "test_of_build", types.SimpleNamespace(Recipe=Recipe, ran=ran))
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setattr(instantiate, "_trusted", set())
  for others in ((), ("min", "mine.viewsy", "views", "cxrjax")):
    instantiate.trust(others)
    with pytest.raises(UserError, match=r"config\.views\.name='mine\.views' .*--trust=mine ") as e:
      locate("mine.views", "Recipe", "config.views.name")
    assert "trust='mine'" in str(e.value) and "CXRJAX_TRUST=mine" in str(e.value) and not ran
  instantiate.trust("nothing, mine")
  assert locate("mine.views", "Recipe") is Recipe and ran == [1]
  assert instantiate.trusted() == ("cxrjax", "min", "mine", "mine.viewsy", "nothing", "views")
  with pytest.raises(UserError, match=r"--trust=a-b is no name of a module"):
    instantiate.trust(["a-b"])


@pytest.mark.parametrize(
  "name", ["os.system", "subprocess.Popen", "builtins.exec", "sys", "os:system"]
)
def test_pythons_own_is_never_asked_for(name, monkeypatch):
  monkeypatch.setenv(instantiate.TRUST, "os,subprocess,builtins,sys")
  with pytest.raises(UserError, match="is Python's own"):
    locate(name, "Method")


@pytest.mark.parametrize(
  "name,hint",
  [
    ("cxrjax.methods.dyno", "did you mean 'dino'"),
    ("cxrjax.methods.dino.Nothing", "has no 'Nothing' of its own"),
    ("nowhere", "give a dotted name"),
    ("cxrjax.core", "is not in cxrjax.methods"),
    ("cxrjax.config.instantiate.locate", "is not in cxrjax.methods"),
    ("cxrjax.methods.dino.dataclasses", "of its own"),
    ("cxrjax.methods.dino.Method.init", "of its own"),
    ("cxrjax.methods.dinov2.dino", "of its own"),
    ("cxrjax.methods.dino:jax.tree", "is no name"),
    ("cxrjax.methods.base.Method", "not what is asked for"),
    ("cxrjax.methods.base.Labels", "not what is asked for"),
    ("cxrjax.methods.base.ema", "not what is asked for"),
    ("cxrjax.methods.__init__", "cannot be found"),
    ("cxrjax.methods", "is not in"),
    ("cxrjax.methods.", "is no name"),
    (".methods", "is no name"),
    ("cxrjax..methods", "is no name"),
    ("\uff4fs.system", "is no name"),
    ("os .system", "is no name"),
    ("", "is no name"),
    (None, "is no name"),
    (["os"], "is no name"),
    ("cxrjax.methods/../core", "is no name"),
  ],
)
def test_unknown_names(name, hint):
  with pytest.raises(UserError, match=hint):
    locate(name, "Method", "config.method.name")


def test_all_that_names_of_this_package_reach():
  """Classes of the kinds asked for, and nothing else."""
  found = {}
  for attribute, kind in instantiate._KINDS.items():
    package = importlib.import_module(kind.package)
    for module in pkgutil.iter_modules(package.__path__, f"{kind.package}."):
      if module.name == "cxrjax.builders.beam_pipeline":  # needs Beam
        continue
      for member in [*vars(importlib.import_module(module.name)), ""]:
        try:
          name = f"{module.name}.{member}".rstrip(".")
          found.setdefault(attribute, {})[name] = locate(name, attribute)
        except UserError:
          continue
  assert {f.__name__ for f in found["Method"].values()} == {"Method"}
  assert {f.__name__ for f in found["Model"].values()} == {"Model"}
  assert {f.__name__ for f in found["Recipe"].values()} == {"Recipe", "Jigsaw", "Rotation"}
  assert {f.__name__ for f in found["Evaluator"].values()} == {"Evaluator"}
  assert {f.__name__ for f in found["run"].values()} == {"run"}
  assert {f.__module__ for f in found["transform"].values()} == {"cxrjax.training.lars"}
  assert len(found["Method"]) == 2 * len(set(found["Method"].values()))


@pytest.mark.parametrize(
  "name",
  [
    "optax.os",
    "optax._src.transform.scale_by_adam",
    "optax.GradientTransformation",
    "optax.jax",
    "optax.apply_updates",
    "optax.contrib.contrib",
    "optax:trace",
    "optax",
  ],
)
def test_of_optax_only_what_transforms_gradients(name):
  assert locate("optax.scale_by_adam", "transform") is optax.scale_by_adam
  assert locate("optax.contrib.scale_by_muon", "transform") is optax.contrib.scale_by_muon
  with pytest.raises(UserError, match="optax"):
    locate(name, "transform")
  with pytest.raises(UserError, match="--trust=optax"):
    locate("optax.scale_by_adam", "Method")


def test_a_missing_dependency_is_not_a_misspelt_name(tmp_path, monkeypatch):
  (tmp_path / "needs_more.py").write_text("import surely_not_installed\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setenv(instantiate.TRUST, "needs_more,surely_not_there")
  with pytest.raises(UserError, match="'surely_not_installed', which is not installed"):
    locate("needs_more", "Method")
  with pytest.raises(UserError, match="'surely_not_there' cannot be imported"):
    locate("surely_not_there", "Method")


def test_parse_arg():
  got = parse_arg("tiny,lr=1,data=folder:/a b/c,model=16", tiny=False, lr=0.5, data="x", model="S")
  assert got == {"tiny": True, "lr": 1.0, "data": "folder:/a b/c", "model": "16"}
  assert parse_arg(None, tiny=False) == {"tiny": False}
  with pytest.raises(UserError, match="did you mean 'model'"):
    parse_arg("modle=S", model="S")
  with pytest.raises(UserError, match="must be of type int"):
    parse_arg("n=big", n=3)
