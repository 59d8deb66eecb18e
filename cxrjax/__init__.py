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
  """Loads the network of a finished run; see `cxrjax.inference.networks.Network`.

  Args:
    workdir: of the run; for an ensemble, a list of several or a comma-separated string.
    trust: modules of your own that it may name, as in `cxrjax.trust`.

  Raises:
    UserError: no run, or an unfinished or unreadable one.
  """
  # imports JAX, which is not needed just for the version
  from cxrjax.inference import networks

  return networks.load(workdir, trust=trust)
