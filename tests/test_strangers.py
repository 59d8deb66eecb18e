"""Runs and weights of strangers: whatever they name, nothing of it is imported or called."""

import copy
import json
import os
import pathlib
import sys

import finished
import pytest
from small import tiny

import cxrjax
from cxrjax import export, predict
from cxrjax.config import instantiate
from cxrjax.config.config_files import load_config
from cxrjax.core.errors import UserError
from cxrjax.core.target import CPU
from cxrjax.data import open_source
from cxrjax.data.decoding.decode import BadImage
from cxrjax.inference import networks, pseudo_masks
from cxrjax.inference.inputs import Files
from cxrjax.models import weights
from cxrjax.models.build import build_encoder
from cxrjax.tasks import explain
from cxrjax.training import init_params

OWN = (
  "import pathlib; pathlib.Path({marker!r}).touch()\n"
  + """
class Method:
  def __init__(self, **options): pass
  init = loss = after_update = encoder_params = encode = check = load = describe = run = __init__
  __call__ = __len__ = __getitem__ = __init__
Model = Recipe = Evaluator = Source = Method
def transform(**options): pass
run = transform
"""
)
# What a name may say, and options with which it would do harm; MARKER is a file that it would make.
NAMES = [
  ("os.system", {"command": "touch MARKER"}),
  ("posix.system", {"command": "touch MARKER"}),
  ("subprocess.run", {"args": ["touch", "MARKER"]}),
  ("subprocess.Popen", {"args": "touch MARKER"}),
  ("subprocess.check_output", {"args": ["touch", "MARKER"]}),
  ("builtins.exec", {"source": "open('MARKER', 'w')"}),
  ("builtins.open", {"file": "MARKER"}),
  ("io.open", {"file": "MARKER", "mode": "w"}),
  ("os.mkdir", {"path": "MARKER"}),
  ("pathlib.Path.touch", {"self": "MARKER"}),
  ("runpy.run_path", {"path_name": "canary.py"}),
  ("importlib.import_module", {"name": "canary"}),
  ("timeit.timeit", {"stmt": "import canary"}),
  ("numpy.savetxt", {"fname": "MARKER", "X": [1.0]}),
  ("numpy.load", {"file": "canary.npy"}),
  ("jax.numpy.save", {"file": "MARKER", "arr": [1.0]}),
  ("pickle.load", {"file": "canary.pkl"}),
  ("canary", {}),
  ("canary.Method", {}),
  ("canary:Method", {}),
  ("canaries.inside", {}),
  ("canaries.inside.Model", {}),
  ("canary.", {}),
  (".canary", {}),
  ("cxrjax..canary", {}),
  ("\uff43anary", {}),
  ("cxrjax.canary", {}),
  ("cxrjax.methods.canary", {}),
  ("cxrjax.config.instantiate.locate", {"name": "canary", "attribute": "Method"}),
  ("cxrjax.config.instantiate.trust", {"names": "canary"}),
  ("cxrjax.config.instantiate.importlib.import_module", {"name": "canary"}),
  ("cxrjax.config.overrides.resolve", {"arguments": ["--config=canary.py"]}),
  ("cxrjax.studies.launcher.subprocess.run", {"args": ["touch", "MARKER"]}),
  ("cxrjax.methods.dino.dataclasses.sys.modules.clear", {}),
  ("cxrjax.methods.dino.Method.__init__.__globals__", {}),
  ("cxrjax.models.vit.__loader__.load_module", {"fullname": "canary"}),
  ("cxrjax.export.write", {"workdir": "RUN", "path": "MARKER"}),
  ("cxrjax.predict.predict", {"workdir": "RUN", "paths": ["."], "out": "MARKER"}),
  ("cxrjax.report.pages.run_page.save", {"path": "MARKER", "text": ""}),
  ("cxrjax.core.atomic_files.atomic_open", {"path": "MARKER"}),
  ("optax.os.system", {"command": "touch MARKER"}),
  ("__main__.Method", {}),
  ("breaker", {}),
]
PLACES = ("model", "method", "views")


@pytest.fixture(scope="module")
def config():
  """Of a run whose network is built in no time."""
  found = tiny(model__depth=1)
  found["evals"] = {"probe": {"name": "cxrjax.evals.probe", "data": {"name": "phantom", "n": 8}}}
  return json.loads(json.dumps(found))


@pytest.fixture
def place(tmp_path, monkeypatch):
  """A folder of a stranger's, in which somebody works, and the file that must not appear in it."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend("")  # as `python -m` has it
  monkeypatch.setattr(instantiate, "_trusted", set())
  monkeypatch.delenv(instantiate.TRUST, raising=False)
  marker = tmp_path / "marker"
  (tmp_path / "canaries").mkdir()
  for name in ("canary", "canaries/inside", "breaker"):
    (tmp_path / f"{name}.py").write_text(OWN.format(marker=str(marker)))
  yield tmp_path, marker
  assert not {"canary", "canaries", "canaries.inside"} & set(sys.modules)


def hostile(value, marker, run):
  if isinstance(value, str):
    return value.replace("MARKER", str(marker)).replace("RUN", str(run))
  return [hostile(v, marker, run) for v in value] if isinstance(value, list) else value


def write(workdir, config):
  """A run that says it has finished."""
  workdir.mkdir(exist_ok=True)
  (workdir / "config.json").write_text(json.dumps(config))
  (workdir / "run.json").write_text(
    json.dumps(
      {
        "status": "finished",
        "steps": 4,
        "epochs": 1.0,
        "batch_size": 8,
        "data": {"train": {"classes": ["a", "b"], "class_counts": {"a": 1, "b": 1}}},
      }
    )
  )
  return str(workdir)


@pytest.mark.parametrize("name, options", NAMES, ids=[name for name, _ in NAMES])
def test_names_of_code(name, options, place, config):
  folder, marker = place
  for room in PLACES:
    run = folder / room
    spec = {**{k: hostile(v, marker, run) for k, v in options.items()}, "name": name}
    for change in (spec, config[room] | {"name": name}):
      write(run, config | {room: change})
      with pytest.raises(UserError) as error:
        cxrjax.load(run)
      assert "\n" not in str(error.value)
  with pytest.raises(UserError):
    open_source(name, **{k: v for k, v in options.items() if k != "name"})
  if name.startswith(("canary", "canaries")) and name[-1] != ".":
    assert f"--trust={name.partition('.')[0].partition(':')[0]}" in str(error.value)
  assert not marker.exists()


@pytest.mark.parametrize("room", PLACES)
def test_every_way_to_a_run(room, place, config, tmp_path):
  """Wherever the workdir of a run is named."""
  folder, marker = place
  run = write(folder / "run", config | {room: {"name": "canary"}})
  image = folder / "x.png"
  image.touch()
  own = copy.deepcopy(config)
  own["init"] = {"path": run}
  explained = {"runs": run, "task": "cxrjax.tasks.explain"}
  ways = [
    lambda: cxrjax.load(run),
    lambda: predict.predict(run, [str(image)], str(folder / "out")),
    lambda: export.write(run, str(folder / "x.npz")),
    lambda: init_params.start(own, None),
    lambda: explain.run(explained, folder / "explained"),
    lambda: pseudo_masks.Segmenter.load(run),
    lambda: networks.segmenter(run, "--lungs"),
  ]
  for way in ways:
    with pytest.raises(UserError, match=r"'canary' .*--trust=canary"):
      way()
  assert not marker.exists()


def test_what_a_config_takes_over_from_a_run(place, config):
  """`init=RUN` takes the network of the run into the user's own config."""
  folder, marker = place
  run = write(folder / "run", config | {"model": {"name": "canary"}})
  model = load_config("simclr")(f"init={run}").model.to_dict()
  with pytest.raises(UserError, match="--trust=canary"):
    build_encoder(model, CPU)
  for text in ("[1]", "{}", '{"model": 3}', "{", "\xff", "[" * 100_000):
    (folder / "run" / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="holds no run: its config") as error:
      load_config("simclr")(f"init={run}").model.to_dict()
    assert "\n" not in str(error.value)
  assert not marker.exists()


def test_names_in_what_judged_a_run(place, config, tmp_path):
  """Its evaluators and their data are opened for maps of other images than its own."""
  folder, marker = place
  spec = {"name": "cxrjax.evals.probe", "data": {"name": "canary.inside", "n": 8}}
  run = folder / "run"
  run.mkdir()
  finished.network(run, config | {"evals": {"probe": spec}})
  with pytest.raises(UserError, match="--trust=canary"):
    explain._source({"data": {"source": "", "options": {}, "split": ""}}, cxrjax.load(run))
  assert not marker.exists()


def test_trust_in_python(place, config):
  folder, marker = place
  run = write(folder / "run", config | {"model": {"name": "canary"}})
  with pytest.raises(UserError, match="cannot be restored"):  # it is no network, but it was asked
    cxrjax.load(run, trust="canary")
  assert marker.exists()
  del sys.modules["canary"]


def test_the_flag(place, config, monkeypatch):
  folder, marker = place
  run = write(folder / "run", config | {"model": {"name": "canary"}})
  (folder / "x.png").touch()
  words = ["predict", f"--workdir={run}", f"--out={folder / 'out'}", str(folder / "x.png")]
  with pytest.raises(UserError, match="--trust=canary"):
    predict.main(words)
  with pytest.raises(UserError, match="cannot be restored"):
    predict.main([*words, "--trust=other,canary"])
  predict.FLAGS["trust"].unparse()
  assert marker.exists() and instantiate.trusted() == ("canary", "other")
  del sys.modules["canary"]


def test_a_prepared_data_set_names_no_code(place):
  """TFDS imports the module of a feature that it does not know."""
  folder, marker = place
  made = folder / "data" / "theirs" / "1.0.0"
  made.mkdir(parents=True)
  (made / "dataset_info.json").write_text(
    json.dumps({"name": "theirs", "version": "1.0.0", "fileFormat": "array_record", "splits": []})
  )
  hidden = {
    "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
    "featuresDict": {"features": {"image": {"pythonClassName": "canary.Method"}}},
  }
  for features in (
    hidden,
    {"type": "canary.Method", "content": {}},
    {"python_class_name": "canary.Method"},
  ):
    (made / "features.json").write_text(json.dumps(features))
    with pytest.raises(UserError, match=r"features\.json names canary\.Method") as error:
      open_source("tfds:theirs", data_dir=str(folder / "data"))
    assert "\n" not in str(error.value)
  assert not marker.exists()


def test_pipes_are_not_waited_for(place, config, tmp_path):
  folder, _ = place
  os.mkfifo(folder / "pipe.png")
  os.mkfifo(folder / "pipe.zip")
  with pytest.raises(BadImage, match="a pipe or a device"):
    Files([str(folder / "pipe.png")]).film(0)
  with pytest.raises(UserError, match="pipe"):
    Files([str(folder / "pipe.zip")])
  run = pathlib.Path(write(folder / "run", config))
  for name in ("config.json", "run.json"):
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(UserError, match="a pipe or a device"):
      cxrjax.load(run)
  with pytest.raises(UserError, match="a pipe or a device"):
    weights.load(folder / "pipe.png", None)
