"""cxrjax: self-supervised learning on chest radiographs in JAX/Flax."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from cxrjax.api import Network

__version__ = "0.1.0"
__all__ = ["load"]


def load(workdir: str | os.PathLike[str]) -> Network:
  """A finished run's network, to predict with; see `cxrjax.api.Network`.

  Raises:
    UserError: no run, one that has not finished, or one that cannot be read.
  """
  from cxrjax import api  # JAX and all; whoever only asks for the version does not wait for it

  return api.load(workdir)
