"""A run small enough to take whole in a test, and a program that takes it in its own process."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cxrjax.config.config_files import load_config

REPOSITORY = pathlib.Path(__file__).parent.parent
HANGS = 3600  # seconds after which a process never ends: no measure of how fast a machine is


def full(*values: Any, id: str | None = None) -> Any:
  """A test's case for the full tier."""
  return pytest.param(*values, id=id, marks=pytest.mark.full)


def tiny(**overrides: Any) -> dict[str, Any]:
  """`configs/dino.py:tiny` with a smaller network and no evaluators.

  Args:
    **overrides: by path, `optimizer__lr={"start": 1.0}`.
  """
  config = load_config("dino")("tiny").to_dict()
  config["model"] |= {"width": 32, "depth": 2, "heads": 2}
  config["method"] |= {"hidden": 32, "bottleneck": 16}
  config["evals"] = {}
  config["log_every"] = "1 steps"
  for path, value in overrides.items():
    *parents, leaf = path.split("__")
    node = config
    for parent in parents:
      node = node[parent]
    node[leaf] = value
  return config


LENGTH = {"duration": "10 steps", "checkpoint__every": "3 steps"}
# An evaluator of the user's own that ends one process, once, at one step.
BREAKER = """
import dataclasses, os, pathlib, signal
import jax
from cxrjax.core.errors import UserError
from cxrjax.evals import base
@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator(base.Evaluator):
  at: int
  how: str
  marker: str
  process: int = 0
  every: str = "1 steps"
  calls = []
  def run(self, encode, params, data, mesh=None):
    self.calls.append(None)
    last = len(self.calls) - 1 == self.at and jax.process_index() == self.process
    if last and not os.path.exists(self.marker):
      pathlib.Path(self.marker).touch()
      if self.how == "mistake":
        raise UserError("the disk is full; free some space")
      os.kill(os.getpid(), signal.Signals[self.how])
    return base.Result({})
"""


def broken(tmp_path: pathlib.Path, at: int, how: str, process: int = 0) -> dict[str, Any]:
  """A run of ten steps that ends by a signal of that name, or by a "mistake", at step `at`.

  Its evaluator is in `tmp_path`, which `launch` takes as `path`.
  """
  (tmp_path / "breaker.py").write_text(BREAKER)
  config = tiny(**LENGTH)
  config["evals"] = {
    "breaker": {
      "name": "breaker",
      "at": at,
      "how": how,
      "process": process,
      "marker": str(tmp_path / "broken"),
    }
  }
  return config


def xla_flags(devices: int) -> str:
  """XLA_FLAGS of a process with so many fake devices, which compiles as this one does otherwise."""
  return f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"


def launch(
  config: dict[str, Any],
  workdir: pathlib.Path,
  *flags: str,
  devices: int = 1,
  path: pathlib.Path | None = None,
) -> subprocess.Popen:
  """`python -m cxrjax.main` on `config` in a process of its own, with fake devices."""
  file = workdir.parent / f"{workdir.name}-config.py"
  file.write_text(
    "import json\nfrom ml_collections import ConfigDict\n"
    f"def get_config(): return ConfigDict(json.loads({json.dumps(config)!r}))\n"
  )
  env = os.environ | {
    "XLA_FLAGS": xla_flags(devices),
    "JAX_PLATFORMS": "cpu",
    "CXRJAX_TRUST": "breaker",
    "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(path or REPOSITORY)]),
  }
  return subprocess.Popen(
    [sys.executable, "-m", "cxrjax.main", f"--config={file}", f"--workdir={workdir}", *flags],
    env=env,
    cwd=REPOSITORY,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@contextlib.contextmanager
def two(
  config: dict[str, Any], workdir: pathlib.Path, port: int, **options: Any
) -> Iterator[list[subprocess.Popen]]:
  """The two processes of one run, on this machine, while entered; options as of `launch`."""
  flags = [f"--coordinator=127.0.0.1:{port}", "--processes=2"]
  both = [launch(config, workdir, *flags, f"--process={i}", **options) for i in (0, 1)]
  try:
    yield both
  finally:
    for process in both:
      if process.returncode is None:
        process.kill()
        process.communicate()


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def program(script: str, *arguments: str, devices: int = 8) -> str:
  """What a Python program prints, in a process of its own with fake devices; fails if it does."""
  tests = REPOSITORY / "tests"
  paths = (REPOSITORY, tests, tests / "methods", REPOSITORY / "benchmarks")
  env = os.environ | {
    "XLA_FLAGS": xla_flags(devices),
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": os.pathsep.join(map(str, paths)),
  }
  return finish(
    subprocess.Popen(
      [sys.executable, "-c", script, *arguments],
      env=env,
      cwd=REPOSITORY,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
  )[0]


def finish(process: subprocess.Popen, status: int = 0, timeout: float = HANGS) -> tuple[str, str]:
  """Waits for it, as many seconds as `timeout`; fails unless it exits with `status`."""
  out, err = process.communicate(timeout=timeout)
  assert process.returncode == status, (process.returncode, out[-2000:], err[-4000:])
  return out, err


def lines(workdir: pathlib.Path, kind: str = "train") -> list[dict[str, Any]]:
  """The records of `metrics.jsonl`."""
  text = (workdir / "metrics.jsonl").read_text()
  return [r for r in map(json.loads, text.splitlines()) if r["kind"] == kind]


def losses(workdir: pathlib.Path) -> np.ndarray:
  return np.array([r["loss"] for r in lines(workdir)])


def saved(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """Every array of the newest checkpoint, by path."""
  from cxrjax.training.checkpoint import load_flat

  return load_flat(workdir / "checkpoints")[1]


def assert_same(a: pathlib.Path, b: pathlib.Path) -> None:
  """Two runs ended with the same parameters, moments and centre, bit for bit."""
  x, y = saved(a), saved(b)
  assert x.keys() == y.keys()
  for name in x:
    np.testing.assert_array_equal(x[name], y[name], err_msg=name)
