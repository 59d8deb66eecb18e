"""torch beside a torchvision that was built for another kind of it."""

from __future__ import annotations

import re
import sys

_LIBRARY = []  # an operator lives as long as the library that declares it


def declare_operators(most: int = 40) -> None:
  """Makes torchvision importable beside a CPU build of torch, as package indexes combine them.

  Its compiled operators then do not load, and importing it fails at the first that it annotates.
  Networks that are compared here use none of them; declared by name alone they can be annotated.
  """
  import torch

  for _ in range(most):
    try:
      import torchvision  # noqa: F401

      return
    except ImportError:
      return  # whoever needs it says so
    except RuntimeError as error:
      missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
      if not missing:
        raise
      if not _LIBRARY:
        _LIBRARY.append(torch.library.Library("torchvision", "DEF"))
      _LIBRARY[0].define(f"{missing[1]}(Tensor x) -> Tensor")
      for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
