"""Set-up for all tests: shapes and types of public functions are checked at run time."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jaxtyping

jaxtyping.install_import_hook(  # an int is a float, as for type checkers
  "cxrjax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_threefry_partitionable", True)

REPOSITORY = pathlib.Path(__file__).parent.parent
TESTS = REPOSITORY / "tests"
# Rooms whose tests' time is compilation; elsewhere programs are compared with those that users run.
QUICK = ("explain", "losses", "methods", "models", "views")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
  """Decoded images and compiled programs of the tests stay out of the user's cache.

  Processes of one test run share it, as runs of one user do.
  """
  base = tmp_path_factory.getbasetemp()
  base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
  os.environ["CXRJAX_CACHE"] = str(base / "cxrjax-cache")


@pytest.fixture(autouse=True)
def _compile_quickly(request):
  """Of some rooms' tests programs are compiled without most optimisations."""
  quick = request.path.relative_to(TESTS).parts[0] in QUICK
  jax.config.update("jax_disable_most_optimizations", quick)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def test_data():
  """The folder of real archives; tests that need it are skipped where there is none."""
  folder = os.environ.get("CXRJAX_TEST_DATA")
  if not folder:
    pytest.skip("CXRJAX_TEST_DATA is not set; it names a folder with chest_xray.zip")
  return pathlib.Path(folder)


@pytest.fixture(scope="session")
def repository():
  return REPOSITORY


def pytest_collection_modifyitems(items):
  on_gpu = None
  for item in items:
    if "gpu" in item.keywords:
      on_gpu = jax.default_backend() == "gpu" if on_gpu is None else on_gpu
      if not on_gpu:
        item.add_marker(pytest.mark.skip(reason="needs a GPU"))
