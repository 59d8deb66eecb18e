"""cxrjax: self-supervised learning on chest radiographs in JAX/Flax."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cxrjax.config.instantiate import trust
from cxrjax.core.version import VERSION

if TYPE_CHECKING:
  from cxrjax.inference.networks import Network, Workdir

__version__ = VERSION
__all__ = ["load", "train", "trust"]


def train(config: str, *flags: str, workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Runs a config, as `cxrjax train` does; the same workdir again resumes. Returns the workdir.

  It then holds `report.html`, `run.json` with every result, and checkpoints; `cxrjax.load` takes
  it.

  Args:
    config: name of a config or its file, and what follows the colon: `"dino:small,lr=1e-3"`.
    *flags: further keys, `"--config.seed=1"`.
    workdir: folder of the run.

  Raises:
    UserError: a mistake in the config or the data, or the run ended with a failure, which its page
      describes.
  """
  from cxrjax.config import describe, overrides
  from cxrjax.core.errors import UserError
  from cxrjax.tasks.run import run_config

  arguments, folder = [f"--config={config}", *flags], pathlib.Path(workdir)
  typed = ", ".join(map(repr, (config, *flags)))
  title = f"cxrjax.train({typed}, workdir={os.fspath(workdir)!r})"
  status = run_config(
    overrides.resolve(arguments),
    folder,
    title,
    text=lambda: describe.as_file(arguments, f"Config of {title}"),
  )
  if status:
    raise UserError(f"the run in {folder} ended with status {status}; see {folder}/report.html")
  return folder


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
