import sys
import types

import pytest

from cxrjax.core.errors import UserError
from cxrjax.data import open_source, phantom


def test_phantom():
  source = open_source("phantom", split="val", n=4, size=40)
  assert isinstance(source, phantom.Source) and source.info.split == "val"


def test_a_source_of_the_users_own(monkeypatch):
  class Source(phantom.Source):
    def __init__(self, split, shade=3):
      super().__init__(split, n=4, size=40)
      self.split, self.shade = split, shade

  module = types.ModuleType("their_package.radiographs")
  module.Source = module.Other = Source
  module.Nothing = lambda split: object()
  package = types.ModuleType("their_package")
  package.__path__ = []
  monkeypatch.setitem(sys.modules, "their_package", package)
  monkeypatch.setitem(sys.modules, "their_package.radiographs", module)
  for name in ("their_package.radiographs", "their_package.radiographs:Other",
               "their_package.radiographs.Other"):
    source = open_source(name, split="test", shade=5)
    assert (source.split, source.shade) == ("test", 5)
  with pytest.raises(UserError, match=r"options.shape .*did you mean 'shade'"):
    open_source("their_package.radiographs", shape=5)
  with pytest.raises(UserError, match="lacks info, table, __len__, __getitem__"):
    open_source("their_package.radiographs:Nothing")


@pytest.mark.parametrize("name, options, word", [
  ("phantm", {}, "names no source"), ("", {}, "names no source"), ("folder", {}, "second half"),
  ("tfds:", {}, "second half"), ("phantom:x", {}, "names no source"),
  ("no_such_package.radiographs", {}, "cannot be imported|not installed"),
  ("phantom", {"sizes": 3}, "did you mean 'size'"), ("phantom", {"split": "tset"}, "valid: train")])
def test_mistakes(name, options, word):
  with pytest.raises(UserError, match=word) as error:
    open_source(name, **options)
  assert "\n" not in str(error.value)
