"""Set-up for all tests: two tiers, shapes and types checked at run time, caches of their own."""

import fcntl
import importlib.metadata
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What tests compute in milliseconds takes seconds to compile: without LLVM's expensive passes then,
# in processes of their own too. `optimised` is for what must hold of programs as users run them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Set before JAX is imported, so that the processes that tests start keep compiled programs as well.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# The older emitters, which JAX 0.10 still has, make a program in two thirds of the time.
os.environ["XLA_FLAGS"] = " ".join(
  dict.fromkeys(
    os.environ.get("XLA_FLAGS", "").split()
    + ["--xla_cpu_use_fusion_emitters=false"]
    * importlib.metadata.version("jaxlib").startswith("0.10.")
  )
)

# Before the hook below: what is imported while it loads a module is compiled anew in every process.
import flax.nnx  # noqa: F401
import grain.python  # noqa: F401
import jax
import jaxtyping
import optax  # noqa: F401
import orbax.checkpoint  # noqa: F401
import packaged
import pytest
import scipy.optimize
import scipy.stats  # noqa: F401

jaxtyping.install_import_hook(  # an int is a float, as for type checkers
  "cxrjax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

jax.config.update("jax_threefry_partitionable", True)

REPOSITORY = pathlib.Path(__file__).parent.parent
WHOLE_RUNS = ("explain", "inference", "studies", "tasks", "training")  # folders that save in runs


def pytest_addoption(parser):
  parser.addoption(
    "--all",
    action="store_true",
    help="also the tests marked `full`: whole runs, every notebook and block of the docs, peers",
  )


def pytest_xdist_auto_num_workers(config):
  """A process for every core, eight at most; none besides pytest's own for a single file."""
  if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
    return None  # pytest-xdist reads it
  files = {arg.partition("::")[0] for arg in config.args}
  if len(files) == 1 and files.pop().endswith(".py"):
    return 0
  affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
  return min(len(affinity), 8) if len(affinity) > 1 else 0


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(config, items):
  """Without `--all` a test of the full tier runs only where its own name was given."""
  for item in items:
    # A run that stops in the middle leaves orbax's futures to the garbage collector, which reports
    # their errors at any later time; what matters of them the run has raised itself.
    if item.path.relative_to(REPOSITORY / "tests").parts[0] in WHOLE_RUNS:
      item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))
  parts = [arg.partition("::") for arg in config.args]
  named = [
    (pathlib.Path(config.invocation_params.dir, file).resolve(), name)
    for file, _, name in parts
    if name
  ]

  for item in items:  # minutes of decoding, where there is what they decode
    if {"test_data", "radiographs"} & set(getattr(item, "fixturenames", ())):
      item.add_marker(pytest.mark.full)

  def runs(item):
    own = item.nodeid.partition("::")[2]
    return (
      config.getoption("all")
      or "full" not in item.keywords
      or any(item.path == file and own.startswith(name) for file, name in named)
    )

  left_out = [item for item in items if not runs(item)]
  if left_out:
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if runs(item)]
  on_gpu = None
  for item in items:
    if "gpu" in item.keywords:
      on_gpu = jax.default_backend() == "gpu" if on_gpu is None else on_gpu
      if not on_gpu:
        item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory):
  """One folder for all processes of a test run."""
  base = tmp_path_factory.getbasetemp()
  return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(autouse=True, scope="session")
def _own_cache(session_folder):
  """Decoded images and compiled programs of the tests stay out of the user's cache.

  Processes of one test run share it, as runs of one user do. Compiled programs may stay for the
  next test run: in the folder that CXRJAX_TEST_CACHE names.
  """
  cache = session_folder / "cxrjax-cache"
  programs = os.environ.get("CXRJAX_TEST_CACHE") or str(cache / "xla")
  os.environ["CXRJAX_CACHE"] = str(cache)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
  jax.config.update("jax_compilation_cache_dir", programs)


@pytest.fixture
def optimised(monkeypatch):
  """Programs are compiled as users' are; with the older emitters still, but not in processes."""
  name = "jax_disable_most_optimizations"
  before = jax.config.read(name)
  monkeypatch.setenv(name.upper(), "0")
  monkeypatch.setenv(
    "XLA_FLAGS",
    " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "fusion_emitters" not in flag),
  )
  jax.config.update(name, False)
  yield
  jax.config.update(name, before)


@pytest.fixture(scope="session")
def test_data():
  """The folder of real archives; tests that need it are skipped where there is none."""
  folder = os.environ.get("CXRJAX_TEST_DATA")
  if not folder:
    pytest.skip("CXRJAX_TEST_DATA is not set; it names a folder with chest_xray.zip")
  return pathlib.Path(folder)


@pytest.fixture(scope="session")
def package(session_folder):
  """The folder that the package is installed in from a wheel, outside of the clone."""
  folder = session_folder / "package"
  folder.mkdir(exist_ok=True)
  with open(folder / "lock", "a") as handle:
    fcntl.flock(handle, fcntl.LOCK_EX)
    if not (folder / "place").exists():
      packaged.install(folder)
  return folder / "place"


@pytest.fixture(scope="session")
def repository():
  return REPOSITORY
