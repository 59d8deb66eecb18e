"""Checkpoints: what is saved comes back, bit for bit; damage and full disks lose nothing else."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import program

from cxrjax.core.errors import UserError
from cxrjax.training import checkpoint
from cxrjax.training.checkpoint import Checkpoints


def state(step):
  rng = np.random.default_rng(step)
  return {
    "step": jnp.int32(step),
    "params": {"a": jnp.asarray(rng.normal(size=(7, 5)), jnp.float32)},
    "opt": (jnp.asarray(rng.normal(size=3), jnp.bfloat16), {"n": jnp.int32(step)}),
  }


def template():
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state(0))


@pytest.fixture
def open_(tmp_path):
  opened = []

  def make(**options):
    opened.append(Checkpoints(tmp_path / "ck", **options))
    return opened[-1]

  yield make
  for checkpoints in opened:
    checkpoints.close()


def same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_round_trip_keeps_structure_types_and_bits(open_):
  checkpoints = open_()
  assert checkpoints.restore(template()) == (None, [])
  checkpoints.save(3, state(3))
  checkpoints.wait()
  got, remarks = open_().restore(template())
  same(got, state(3))
  assert remarks == []


def test_a_save_is_not_disturbed_by_donation(open_):
  checkpoints = open_()
  original = state(1)
  kept = jax.tree.map(np.array, original)
  checkpoints.save(1, original)
  overwrite = jax.jit(lambda s: jax.tree.map(jnp.zeros_like, s), donate_argnums=0)
  overwrite(original)
  checkpoints.wait()
  got, _ = checkpoints.restore(template())
  same(got, kept)


def test_keeps_the_newest_and_the_best(open_):
  checkpoints = open_(keep=2)
  for step, score in [(1, 0.5), (2, 0.9), (3, None), (4, 0.7), (5, 0.6)]:
    checkpoints.save(step, state(step), score)
  checkpoints.wait()
  assert checkpoints.steps == [2, 4, 5]


# orbax leaves the future of the failed read to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_newest_checkpoint_is_set_aside(open_, tmp_path):
  checkpoints = open_()
  checkpoints.save(1, state(1))
  checkpoints.save(2, state(2))
  checkpoints.close()
  data = [p for p in (tmp_path / "ck" / "2").rglob("*") if p.is_file() and p.parent.name == "d"]
  for file in data:
    file.write_bytes(file.read_bytes()[:20])
  again = open_()
  got, remarks = again.restore(template())
  same(got, state(1))
  assert len(remarks) == 1 and "2 is damaged" in remarks[0]
  assert (tmp_path / "ck" / "2.damaged").is_dir()
  again.save(2, state(2))  # its place is free again
  again.wait()
  same(again.restore(template())[0], state(2))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_all_damaged_is_an_error_that_says_so(open_, tmp_path):
  checkpoints = open_()
  checkpoints.save(1, state(1))
  checkpoints.close()
  for file in (tmp_path / "ck" / "1").rglob("*"):
    if file.is_file():
      file.write_bytes(b"")
  with pytest.raises(UserError, match="none is left"):
    open_().restore(template())


def test_a_save_that_fails_says_what_to_do(open_, monkeypatch):
  checkpoints = open_()
  checkpoints.save(1, state(1))
  checkpoints.wait()

  class Full:
    def result(self):
      raise OSError(28, "No space left on device")

  monkeypatch.setattr(checkpoints._checkpointer, "save_async", lambda *a, **k: Full())
  checkpoints.save(2, state(2))
  with pytest.raises(UserError, match=r"no space left on device; free some space.*from step 1"):
    checkpoints.wait()


def test_a_checkpoint_is_loaded_by_name(open_, tmp_path):
  checkpoints = open_()
  checkpoints.save(1, state(1))
  checkpoints.close()
  step, arrays = checkpoint.load_flat(tmp_path / "ck")
  assert step == 1
  np.testing.assert_array_equal(arrays["params/a"], state(1)["params"]["a"])
  with pytest.raises(UserError, match="does not exist"):
    checkpoint.load_flat(tmp_path / "nothing")


def test_the_best_is_the_one_with_the_highest_score(open_, tmp_path):
  checkpoints = open_()
  assert checkpoints.best is None
  for step, score in ((1, 0.5), (2, 0.8), (3, 0.8), (4, 0.2), (5, None)):
    checkpoints.save(step, state(step), score)
    checkpoints.wait()
  best = checkpoints.best
  assert best in (2, 3) and best in checkpoints.steps
  np.testing.assert_array_equal(
    checkpoints.load(best, template())["params"]["a"], state(best)["params"]["a"]
  )
  checkpoints.close()
  step, flat = checkpoint.load_flat(tmp_path / "ck", best=True)
  assert step == best
  np.testing.assert_array_equal(flat["params/a"], state(best)["params"]["a"])
  assert checkpoint.load_flat(tmp_path / "ck")[0] == 5


def test_sizes_are_looked_at_before_anything_is_read(tmp_path, monkeypatch):
  """A stranger's checkpoint may claim arrays that fill the memory."""
  checkpoints = Checkpoints(tmp_path / "ck")
  checkpoints.save(1, state(1))
  checkpoints.close()
  flat = checkpoint.load_flat(tmp_path / "ck")[1]
  assert set(checkpoint.load_flat(tmp_path / "ck", wanted=flat)[1]) == set(flat)
  monkeypatch.setattr(checkpoint.ocp.training.Checkpointer, "load", None)  # it is never called
  for wanted, why in (
    ({"params/b": flat["params/a"]}, "lacks params/b"),
    ({"params/a": np.zeros((7, 7))}, r"has params/a of shape .* implies \(7, 7\)"),
  ):
    with pytest.raises(UserError, match=why):
      checkpoint.load_flat(tmp_path / "ck", wanted=wanted)
  monkeypatch.setattr(checkpoint, "_LEAST", 0)
  monkeypatch.setattr(checkpoint, "_STATES", 0)
  with pytest.raises(UserError, match="values of optimiser state"):
    checkpoint.load_flat(tmp_path / "ck", wanted={"params/a": flat["params/a"]})


def test_a_checkpoint_of_devices_that_are_gone(tmp_path):
  """It was written on four; this process has one."""
  script = """
import sys, pathlib, jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from cxrjax.training.checkpoint import Checkpoints
assert jax.device_count() == 4
mesh = Mesh(np.array(jax.devices()), ("data",))
x = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, PartitionSpec("data")))
checkpoints = Checkpoints(pathlib.Path(sys.argv[1]))
checkpoints.save(1, {"params": {"a": x}})
checkpoints.close()
"""
  program(script, str(tmp_path / "ck"), devices=4)
  assert len(jax.devices()) == 1
  step, flat = checkpoint.load_flat(tmp_path / "ck")
  assert step == 1
  np.testing.assert_array_equal(flat["params/a"], np.arange(8.0))


def flipped(file, rng):
  data = bytearray(file.read_bytes())
  data[rng.integers(len(data))] ^= 1 << rng.integers(8)
  file.write_bytes(data)


def test_a_flipped_bit_is_found_wherever_it_is(open_, tmp_path):
  """In every file of a checkpoint, several times in the large ones: arrays, score, config."""
  checkpoints = open_(config={"lr": 0.1})
  checkpoints.save(1, state(1), 0.5)
  checkpoints.save(2, state(2), 0.9)
  checkpoints.close()
  whole = tmp_path / "ck"
  names = [
    f.relative_to(whole)
    for f in sorted((whole / "2").rglob("*"))
    if f.is_file() and f.stat().st_size
  ]
  assert len(names) > 6
  rng = np.random.default_rng(0)
  for i, name in enumerate(n for n in names for _ in range(6 if n.parent.name == "d" else 1)):
    place = tmp_path / str(i)
    shutil.copytree(whole, place)
    flipped(place / name, rng)
    with pytest.raises(UserError, match=r"checkpoint .*/2 is damaged \(.*move it away") as caught:
      checkpoint.load_flat(place, best=True)
    assert "\n" not in str(caught.value)
    again = Checkpoints(place)
    got, remarks = again.restore(template())
    again.close()
    same(got, state(1))
    assert len(remarks) == 1 and "2 is damaged" in remarks[0]
    assert (place / "2.damaged").is_dir()
    assert checkpoint.load_flat(place)[0] == 1


def test_a_damaged_best_is_refused(open_, tmp_path):
  checkpoints = open_(keep=1)
  checkpoints.save(1, state(1), 0.9)
  checkpoints.save(2, state(2), 0.5)
  checkpoints.wait()
  for file in (tmp_path / "ck" / "1" / "state" / "d").iterdir():
    flipped(file, np.random.default_rng(0))
  same(checkpoints.restore(template())[0], state(2))
  with pytest.raises(UserError, match=r"checkpoint .*/1 is damaged"):
    checkpoints.load(checkpoints.best, template())


def test_killed_before_its_checksums_were_written(open_, tmp_path):
  """The newest gets them when it is opened; of an older one they cannot be missing so."""
  checkpoints = open_()
  checkpoints.save(1, state(1))
  checkpoints.save(2, state(2))
  checkpoints.close()
  manifests = [tmp_path / "ck" / step / "manifest.json" for step in "12"]
  written = manifests[1].read_bytes()
  manifests[1].unlink()
  got, remarks = open_().restore(template())
  same(got, state(2))
  assert remarks == [] and manifests[1].read_bytes() == written
  manifests[0].unlink()
  got, remarks = open_().restore(template())
  same(got, state(2))
  assert len(remarks) == 1 and "1 is damaged (it has no manifest.json)" in remarks[0]


def test_a_checkpoint_holds_its_config(open_, tmp_path):
  assert checkpoint.config_of(tmp_path / "ck") is None
  checkpoints = open_(config={"lr": 0.1, "views": {"size": (1, 2)}})
  checkpoints.save(1, state(1))
  checkpoints.wait()
  assert checkpoint.config_of(tmp_path / "ck") == {"lr": 0.1, "views": {"size": [1, 2]}}
  checkpoints.save(2, state(2))
  checkpoints.close()
  flipped(tmp_path / "ck" / "2" / "_CHECKPOINT_METADATA", np.random.default_rng(0))
  assert checkpoint.config_of(tmp_path / "ck")["lr"] == 0.1  # of the one before
