"""What `cxrjax.export` writes, read again: by this package, and by JAX without it."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors import safe_open
from small import REPOSITORY, full

from cxrjax import export
from cxrjax.core.durations import Clock
from cxrjax.core.errors import UserError
from cxrjax.inference import networks
from cxrjax.methods import classify, simsiam
from cxrjax.methods.base import Labels, split_stats
from cxrjax.models import densenet, inception, resnet, vit, vitae, weights
from cxrjax.models.weights import files
from cxrjax.training.restore import Restored

CLOCK = Clock(10, 1.0, 4)
LABELS = Labels(("normal", "opacity", "effusion"), True, (1, 1, 1), (3, 3, 3))
PLAIN = vit.Model(variant="Nu", depth=1, patch_size=8, image_size=32)
RICH = vit.Model(
  variant="Nu",
  depth=1,
  patch_size=8,
  image_size=32,
  registers=2,
  mask_token=True,
  layer_scale=1e-5,
  pool="mean",
  gelu="tanh",
)
NETWORKS = {
  "vit": PLAIN,
  "rich vit": RICH,
  "resnet": resnet.Model(depth=18, width=8),
  "densenet": densenet.Model(growth=4),
  "inception": inception.Model(width=4),
}


def finished(encoder, tmp_path, *, kind="classifier", mean=0.5, std=0.25):
  """A finished run of made-up weights."""
  params, stats = split_stats(made_up.of(encoder))
  if kind == "classifier":
    method = classify.Method(encoder=encoder, clock=CLOCK, labels=LABELS)
    head = {"kernel": made_up.images(encoder.features, 3), "bias": made_up.images(3)}
    tree = {"encoder": params, "head": head}
  else:
    method, tree = simsiam.Method(encoder=encoder, clock=CLOCK), {"encoder": params}
  config = {
    "views": {"mean": mean, "std": std, "global_size": 32},
    "model": {"name": "made up"},
    "method": {"name": type(method).__module__},
    "data": {"size": 48, "fit": "pad"},
  }
  facts = {"evaluation": {"test": {"trained": {"temperature": [1.5], "thresholds": [0.2]}}}}
  tree, stats = jax.tree.map(jnp.asarray, (tree, stats))
  return Restored(tmp_path, config, facts, 7, method, tree, {"stats": stats})


@pytest.fixture
def write(monkeypatch, tmp_path):
  def function(encoder, name, **options):
    run = finished(encoder, tmp_path, **options)
    monkeypatch.setattr(networks, "restore", lambda workdir, key: run)
    lines = export.write("runs/x", str(tmp_path / name))
    return tmp_path / name, run, lines

  return function


def gray(*shape):
  return (255 * np.random.default_rng(0).random(shape)).astype(np.float32)


@pytest.mark.parametrize(
  "name, ending",
  [
    ("vit", "safetensors"),
    ("rich vit", "npz"),
    ("resnet", "safetensors"),
    full("resnet", "npz"),
    *(full(name, "safetensors") for name in ("rich vit", "densenet", "inception")),
  ],
)
def test_read_again(name, ending, write):
  """Every parameter as it was, but for the class token that takes its position with it."""
  path, run, _ = write(NETWORKS[name], f"x.{ending}")
  found, report = weights.load(path, NETWORKS[name])
  ours, theirs = flatten_dict(found, sep="/"), flatten_dict(run.encoder_params, sep="/")
  assert report.source == "cxrjax"
  moved = {"cls", "pos", "mask_token"} if name == "rich vit" and ending == "safetensors" else set()
  assert report.new == (("mask_token",) if moved else ())
  for path in theirs.keys() - moved:
    np.testing.assert_allclose(ours[path], theirs[path], rtol=1e-6, atol=1e-7, err_msg=path)
  if moved:
    np.testing.assert_allclose(ours["cls"] + ours["pos"][:1], theirs["cls"] + theirs["pos"][:1])
    np.testing.assert_array_equal(ours["pos"][1:], theirs["pos"][1:])


def test_counters_of_batches_are_scalars(write):
  """As torch has them, or it would not load the file strictly."""
  path, _, _ = write(NETWORKS["resnet"], "x.safetensors")
  with safe_open(path, framework="numpy") as opened:
    counters = [n for n in opened.keys() if n.endswith("num_batches_tracked")]  # noqa: SIM118
    assert counters and all(opened.get_tensor(n).shape == () for n in counters)


def test_other_pixels_are_folded_in(write):
  """A run on other pixels than the one that starts from its file."""
  path, run, _ = write(PLAIN, "x.npz", mean=0.3, std=2.0)
  found, _ = weights.load(path, PLAIN)
  x = jnp.asarray(gray(1, 32, 32, 1) / 255)
  np.testing.assert_allclose(
    jax.jit(PLAIN.encode)(found, (x - 0.5) / 0.25).cls,
    jax.jit(PLAIN.encode)(run.encoder_params, (x - 0.3) / 2.0).cls,
    atol=1e-4,
  )


def test_our_own_names_take_any_network(write):
  encoder = vitae.Model(width=16, depths=(1, 1, 1, 1))
  path, run, _ = write(encoder, "x.npz")
  found, report = weights.load(path, encoder)
  assert set(report.left) == {"head/bias", "head/kernel"}
  np.testing.assert_array_equal(
    found["layers"]["3"]["NC"]["0"]["norm1"]["scale"],
    run.params["encoder"]["layers"]["3"]["NC"]["0"]["norm1"]["scale"],
  )
  with pytest.raises(UserError, match=r"timm has no network like .*vitae"):
    write(encoder, "x.safetensors")


def test_description(write):
  path, _, lines = write(RICH, "x.safetensors")
  with safe_open(path, framework="numpy") as opened:
    tensors, metadata = {n: opened.get_tensor(n) for n in opened.keys()}, opened.metadata()  # noqa: SIM118
  about = json.loads(metadata[files.DESCRIPTION_KEY])
  assert about["classes"] == ["normal", "opacity", "effusion"]
  assert (about["mean"], about["std"], about["temperature"]) == (0.5, 0.25, [1.5])
  assert about["timm"]["args"]["reg_tokens"] == 2
  assert tensors["head.weight"].shape == (3, 64)
  assert any(line.startswith("loads into timm.create_model('vit_base") for line in lines)
  assert "left out: mask_token" in lines


def test_npz_needs_nothing_but_numpy(write):
  path, run, _ = write(PLAIN, "x.npz")
  with np.load(path, allow_pickle=False) as archive:
    assert json.loads(str(archive["cxrjax"]))["family"] == "vit"
    np.testing.assert_array_equal(archive["head/kernel"], run.params["head"]["kernel"])


ALONE = """
import sys
class Blocked:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in ("cxrjax", "flax", "optax", "jaxtyping"):
      raise ImportError(name + " is not there")
sys.meta_path.insert(0, Blocked())
import numpy as np, jax, jax.export
net = jax.export.deserialize(open(sys.argv[1], "rb").read())
images = np.load(sys.argv[2])
for n in (1, len(images)):
  np.savez(sys.argv[2] + f"-{n}.npz", **net.call(images[:n]))
"""


@pytest.mark.parametrize("name, kind", [("vit", "classifier"), full("resnet", "encoder")])
def test_stablehlo_runs_alone(name, kind, write, tmp_path):
  """In a process without this package, on one image and on three."""
  path, run, _ = write(NETWORKS[name], "x.stablehlo", kind=kind)
  images = gray(3, 32, 32, 1)
  np.save(tmp_path / "images.npy", images)
  subprocess.run(
    [sys.executable, "-c", ALONE, path, tmp_path / "images.npy"],
    check=True,
    cwd=tmp_path,
    capture_output=True,
  )
  x = jnp.asarray(images / 255 - 0.5) / 0.25
  if kind == "classifier":
    network = run.method.network_params(run.params, run.method_state)
    reference = {"probabilities": run.method.predict(network, x)}
    np.testing.assert_allclose(reference["probabilities"].sum(1), 1, rtol=1e-5)
  else:
    features = jax.jit(run.encoder.encode)(run.encoder_params, x)
    reference = {"features": features.cls, "patches": features.patches}
  about = json.loads((tmp_path / "x.stablehlo.json").read_text())
  assert about["input"] == ["b", 32, 32, 1]
  assert about["outputs"].keys() == reference.keys()
  for n in (1, 3):
    with np.load(tmp_path / f"images.npy-{n}.npz") as found:
      for what, value in reference.items():
        assert about["outputs"][what] == ["b", *value.shape[1:]]
        np.testing.assert_allclose(found[what], value[:n], atol=1e-4)


def test_onnx(write, tmp_path):
  pytest.importorskip("jax2onnx")
  runtime = pytest.importorskip("onnxruntime")
  path, run, _ = write(PLAIN, "x.onnx")
  session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
  images = gray(3, 32, 32, 1)
  (found,) = session.run(["probabilities"], {"gray": images})
  reference = run.method.predict(run.params, jnp.asarray(images / 255 - 0.5) / 0.25)
  np.testing.assert_allclose(found, reference, atol=1e-4)


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_a_flipped_bit_is_refused(ending, write, tmp_path):
  """Or it is one that means nothing, as in the time of a zip's member."""
  path, _, _ = write(PLAIN, f"x.{ending}")
  assert export.check(str(path)).endswith(f"x.{ending} is whole")
  whole = files.read(path, "init")
  data, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
  places = [*rng.integers(16, 2000, 150), *rng.integers(len(data), size=100)]  # in its header, too
  for place in places:
    flipped = bytearray(data)
    flipped[place] ^= 1 << rng.integers(8)
    path.write_bytes(flipped)
    try:
      found = files.read(path, "init")
    except UserError as error:
      refused += 1
      assert "\n" not in str(error)
      continue
    assert found.about == whole.about and found.arrays.keys() == whole.arrays.keys()
    for name, array in whole.arrays.items():
      np.testing.assert_array_equal(found.arrays[name], array)
  assert refused > 0.9 * len(places)
  flipped = bytearray(data)
  flipped[len(data) // 2] ^= 1
  path.write_bytes(flipped)
  with pytest.raises(UserError, match="cannot be read"):
    weights.load(path, PLAIN)


def test_what_lies_beside_a_file_tells_of_damage(tmp_path):
  file = tmp_path / "x.stablehlo"
  file.write_bytes(bytes(range(100)))
  export._describe(file, {"family": "vit"})
  assert json.loads((tmp_path / "x.stablehlo.json").read_text())["family"] == "vit"
  assert export.check(str(file)) == f"{file} is whole"
  file.write_bytes(bytes(range(1, 101)))
  with pytest.raises(UserError, match=r"x.stablehlo. is damaged: x.stablehlo.json has a different"):
    export.check(str(file))
  (tmp_path / "x.stablehlo.json").write_text("{}")
  with pytest.raises(UserError, match=r"cannot be checked: .* it needs x.stablehlo.json beside"):
    export.check(str(file))


def test_mistakes(write, tmp_path):
  with pytest.raises(UserError, match=r"--format='tflite' is not known; valid: npz, onnx"):
    write(PLAIN, "x.tflite")
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match=r"--out=.*cannot be written: "):
    write(PLAIN, "file/x.npz")


def test_command(tmp_path):
  """A UserError is one line and status 2."""
  done = subprocess.run(
    [sys.executable, "-m", "cxrjax.export", "--workdir=runs/none", "--out=x.npz"],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
  )
  assert done.returncode == 2
  assert done.stderr.startswith("error: --workdir='runs/none' holds no run (")
  assert done.stderr.count("\n") == 1
