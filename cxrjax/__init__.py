"""cxrjax: self-supervised learning on chest radiographs in JAX/Flax."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cxrjax.core.build import trust

if TYPE_CHECKING:
  from cxrjax.api import Network, Workdir

__version__ = "0.1.0"
__all__ = ["load", "trust"]


def load(workdir: Workdir, trust: str | Iterable[str] = ()) -> Network:
  """A finished run's network, to predict with; see `cxrjax.api.Network`.

  Args:
    workdir: of the run; of several, a list or with commas between them, for an ensemble.
    trust: modules of your own that it may name, as in `cxrjax.trust`.

  Raises:
    UserError: no run, one that has not finished, or one that cannot be read.
  """
  from cxrjax import api  # JAX and all; whoever only asks for the version does not wait for it

  return api.load(workdir, trust=trust)
