"""Every notebook runs from top to bottom, smaller still than its small settings."""

import json
import os
import re

import pytest
from documents import compiling
from small import HANGS, REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "colabs").glob("*.ipynb"))
TINY = "tiny"


def cells(path, kind):
  return [
    "".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind
  ]


@pytest.mark.full
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch, shared, package):
  nbclient = pytest.importorskip("nbclient")
  import nbformat

  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  for name, value in {
    **compiling(shared),
    "PYTHONPATH": str(package),
    "JAX_PLATFORMS": "cpu",
    "CXRJAX_NOTEBOOK_RECIPE": TINY,
    "IPYTHONDIR": str(tmp_path / "ipython"),
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
  }.items():
    monkeypatch.setenv(name, value)
  nbclient.NotebookClient(
    notebook, timeout=HANGS, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
  ).execute()
  outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
  shown = {kind for o in outputs for kind in o.get("data", {})}
  assert shown & {"image/png", "text/html"} or "pods" in path.name
  assert re.search(r"JAX .* on \d+ x ", str(outputs))
  assert not [o for o in outputs if o.output_type == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_clean(path):
  """No outputs, one install cell, one name of the source, a switch for small machines."""
  found = json.loads(path.read_text())["cells"]
  assert not any(c.get("outputs") or c.get("execution_count") for c in found)
  code = cells(path, "code")
  assert sum("pip" in c for c in code) == 1
  assert sum('CXRJAX_SOURCE = os.environ.get("CXRJAX_SOURCE", "")' in c for c in code) == 1
  kind = json.loads(path.read_text())["metadata"]["accelerator"]
  assert kind == ("TPU" if "tpu" in path.name else "GPU")
  assert sum("SMALL = True" in c for c in code) == 1
  assert cells(path, "markdown")[0].startswith("# ")
  text = "\n".join(cells(path, "markdown") + code)
  assert not re.search(r"https?://(?!docs\.)", text) and os.path.expanduser("~") not in text


def test_all_begin_alike_and_the_docs_list_them():
  installs = {next(c for c in cells(p, "code") if "pip" in c) for p in NOTEBOOKS}
  assert len(installs) == 1
  listed = re.findall(r"`(\d\d_\w+\.ipynb)`", (REPOSITORY / "docs/how-to/notebooks.md").read_text())
  assert listed == [p.name for p in NOTEBOOKS]
