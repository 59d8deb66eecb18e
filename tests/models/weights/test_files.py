"""Formats of weights files, and pickles that want more than tensors."""

import json
import pathlib
import pickle
import zipfile

import made_up
import ml_dtypes
import numpy as np
import pytest
import torch_files
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file
from torch_files import Code, call

from cxrjax.core.errors import UserError
from cxrjax.models import weights
from cxrjax.models.vit import Model
from cxrjax.models.weights import files, pickles

RNG = np.random.default_rng(0)
BASE = RNG.standard_normal((6, 4)).astype(np.float32)
ARRAYS = {
  "a": RNG.standard_normal((2, 3)).astype(np.float32),
  "turned": BASE.T,
  "part": BASE[2:4, 1:],
  "half": RNG.standard_normal(5).astype(np.float16),
  "count": np.array(7, np.int64),
  "brain": RNG.standard_normal(4).astype(ml_dtypes.bfloat16),
  "none": np.zeros((0, 2), np.float32),
}


@pytest.mark.parametrize("save", [torch_files.save, torch_files.save_legacy])
def test_checkpoints_of_torch(save, tmp_path):
  """Nested dicts, views of one storage, types, and objects that are of no use here."""
  noise = {
    "epoch": 3,
    "lr": [0.1, {"deep": ARRAYS["a"]}],
    "args": Code(b"cargparse\nNamespace\n)\x81}X\x02\x00\x00\x00lrK\x01sb"),
  }
  found = files.read(save({"model": ARRAYS, **noise}, tmp_path / "x.pth"), "config.init.path")
  assert set(found.arrays) == {f"model.{name}" for name in ARRAYS}
  for name, array in ARRAYS.items():
    read = np.asarray(found.arrays[f"model.{name}"])
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def test_safetensors(tmp_path):
  whole = {name: np.ascontiguousarray(array) for name, array in ARRAYS.items()}
  save_file(whole, tmp_path / "x", {"format": "np"})
  found = files.read(tmp_path / "x", "k").arrays
  assert found.keys() == ARRAYS.keys()
  for name, array in ARRAYS.items():
    assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(found[name], array)


def test_tensors_are_read_on_demand(tmp_path):
  """An optimiser's moments cost nothing, so that what is wrong with them is no matter."""
  path = torch_files.save({"model": {"a": ARRAYS["a"]}, "optimizer": {"m": BASE}}, tmp_path / "x")
  with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "y", "w") as new:
    for name in old.namelist():
      new.writestr(name, b"" if name.endswith("data/1") else old.read(name))
  found = files.read(tmp_path / "y", "k").arrays
  np.testing.assert_array_equal(np.asarray(found["model.a"]), ARRAYS["a"])
  with pytest.raises(ValueError, match="cut short"):
    np.asarray(found["optimizer.m"])


class _Exploit:
  """What pickles of malicious models do: a call on loading."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


def _harm(marker: str) -> dict[str, bytes]:
  import os

  command = f"touch {marker}"
  return {
    "os.system": pickle.dumps(_Exploit(os.system, command)),
    "posix.system": torch_files.pickled(call("posix", "system", command)),
    "eval": torch_files.pickled(call("builtins", "eval", f"open({marker!r}, 'w')")),
    "exec in a state dict": torch_files.pickled(
      {"a": ARRAYS["a"], "b": call("builtins", "exec", f"open({marker!r}, 'w')")}
    ),
    "python 2's eval": torch_files.pickled(call("__builtin__", "eval", f"open({marker!r}, 'w')")),
    "subprocess": torch_files.pickled(call("subprocess", "check_output", ["touch", marker])),
    "runpy": torch_files.pickled(call("runpy", "_run_code", f"open({marker!r}, 'w')", {})),
    "a call's result that is called": torch_files.pickled(call("operator", "attrgetter", "system")),
    "getattr": torch_files.pickled(call("builtins", "getattr", "os", "system")),
    "torch.load in torch.load": torch_files.pickled(call("torch", "load", marker)),
    "a dotted way to the globals of something allowed": b"\x80\x04\x8c\x0bcollections"
    b"\x8c\x1eOrderedDict.__init__.__class__\x93.",
    "by its name on the stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93"
    + b"\x8c"
    + bytes([len(command)])
    + command.encode()
    + b"\x85R.",
    "an instance": f"(ios\nsystem\n{command}\n.".encode(),
    "importlib": torch_files.pickled(call("importlib", "import_module", "antigravity")),
    "numpy's own loader": torch_files.pickled(call("numpy", "load", marker)),
  }


HARM = sorted(_harm("x"))


@pytest.mark.parametrize("wrap", ["zip", "legacy", "second pickle", "bare"])
@pytest.mark.parametrize("name", HARM)
def test_no_pickle_runs_code(name, wrap, tmp_path):
  marker = tmp_path / "harm"
  code, path = _harm(str(marker))[name], tmp_path / "x.pth"
  if wrap == "zip":
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("archive/data.pkl", code)
  elif wrap == "legacy":
    head = b"".join(map(torch_files.pickled, (0x1950A86A20F9469CFC6C, 1001, {"x": 1})))
    path.write_bytes(head + code)
  elif wrap == "second pickle":
    path.write_bytes(torch_files.pickled(0x1950A86A20F9469CFC6C) + code)
  else:
    path.write_bytes(code)
  with pytest.raises(UserError, match="it was not run") as error:
    weights.load(path, Model(variant="Nu"))
  assert "\n" not in str(error.value)
  assert not marker.exists()


def test_what_is_allowed_is_harmless():
  """None of it is code of torch, the system or the interpreter, but for a plain container."""
  for (module, _), value in pickles._ALLOWED.items():
    own = getattr(value, "__module__", "cxrjax")
    assert own.startswith("cxrjax") or (module, value.__name__) == ("collections", "OrderedDict")


@pytest.mark.parametrize(
  "content, reason",
  [
    (b"", "cannot be read"),
    (b"hello, this is no weights file", "cannot be read"),
    (b"PK\x03\x04" + b"\0" * 40, "cannot be read"),
    (b'\x10\0\0\0\0\0\0\0{"a": [1, 2, 3]', "cannot be read"),
    (
      b"\x40\0\0\0\0\0\0\0"
      + b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", 4]}}'.ljust(64)
      + b"\0" * 4,
      "cannot be read",
    ),
    (b"\x18\0\0\0\0\0\0\0" + b'{"__metadata__": [1, 2]}', "metadata are not strings"),
    (torch_files.pickled({"a": 1}), "no checkpoint of torch's"),
  ],
)
def test_no_weights_file(content, reason, tmp_path):
  path = tmp_path / "x.safetensors"
  path.write_bytes(content)
  with pytest.raises(UserError, match=reason) as error:
    files.read(path, "config.init.path")
  assert str(error.value).startswith(f"config.init.path={str(path)!r}")


def test_missing_and_folder(tmp_path):
  with pytest.raises(UserError, match="No such file"):
    files.read(tmp_path / "none.pth", "k")
  with pytest.raises(UserError, match="directory"):
    files.read(tmp_path, "k")
  torch_files.save({"epoch": 3}, tmp_path / "x.pth")
  with pytest.raises(UserError, match="holds no arrays"):
    files.read(tmp_path / "x.pth", "k")
  with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
    archive.writestr("readme.txt", "hello")
  with pytest.raises(UserError, match="not of torch's"):
    files.read(tmp_path / "y.zip", "k")


def test_objects_in_an_npz_are_refused(tmp_path):
  marker = tmp_path / "harm"
  np.savez(tmp_path / "x.npz", embedding=np.array([_Exploit(pathlib.Path.touch, marker)], object))
  with pytest.raises(UserError, match="cannot be read: its array has dtype object"):
    files.read(tmp_path / "x.npz", "k")
  assert not marker.exists()


def test_cut_short(tmp_path):
  """Every prefix of a file is a clear error or is not needed."""
  save_file({"a": np.ascontiguousarray(BASE)}, tmp_path / "x")
  whole = (tmp_path / "x").read_bytes()
  for length in range(0, len(whole) - 1, 7):
    (tmp_path / "x").write_bytes(whole[:length])
    with pytest.raises(UserError, match="cannot be read"):
      files.read(tmp_path / "x", "k")


def test_what_a_file_says_of_itself_may_be_anything(tmp_path):
  """Arrays of other shapes and types, and another description: one line, or as if it were right."""
  encoder = Model(variant="Nu", width=32, depth=1, heads=2, patch_size=8, image_size=32)
  flat = {
    f"encoder/{n}": np.asarray(v) for n, v in flatten_dict(made_up.of(encoder), sep="/").items()
  }
  about = {"family": "vit", "names": "cxrjax", "mean": 0.5, "std": 0.25, "heads": 2}
  cases = [(about | {key: value}, {}) for key in about for value in ([], {}, None, "x", -1, [1])]
  cases += [
    (about, {name: x})
    for name in ("encoder/pos", "encoder/patch/kernel", "encoder/cls")
    for x in (
      np.zeros(()),
      np.zeros((0,)),
      np.zeros((1,)),
      np.zeros((2,) * 5),
      np.array("text"),
      np.full(3, 1j),
      np.zeros((3, 32)),
    )
  ]
  cases += [({}, {}), ([], {}), (about | {"names": "timm"}, {}), (about | {"names": ["timm"]}, {})]
  path, right = tmp_path / "x.npz", 0
  for said, changed in [(about, {}), *cases]:
    own = files.checksum(flat | changed, json.dumps(said))
    np.savez(path, cxrjax=np.array(json.dumps(said)), cxrjax_crc32=np.array(own), **flat | changed)
    try:
      weights.load(path, encoder)
      right += 1
    except UserError as error:
      assert str(error).startswith("config.init.path='") and "\n" not in str(error)
  assert 1 <= right < len(cases) / 2
