"""cxrjax: self-supervised learning on chest radiographs in JAX/Flax."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cxrjax.config.instantiate import trust
from cxrjax.core.version import VERSION

if TYPE_CHECKING:
  from cxrjax.inference.networks import Network, Workdir

__version__ = VERSION
__all__ = ["load", "trust"]


def load(workdir: Workdir, trust: str | Iterable[str] = ()) -> Network:
  """A finished run's network, to predict with; see `cxrjax.inference.networks.Network`.

  Args:
    workdir: of the run; of several, a list or with commas between them, for an ensemble.
    trust: modules of your own that it may name, as in `cxrjax.trust`.

  Raises:
    UserError: no run, one that has not finished, or one that cannot be read.
  """
  # JAX and all; whoever only asks for the version does not wait for it
  from cxrjax.inference import networks

  return networks.load(workdir, trust=trust)
