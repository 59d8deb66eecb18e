import hashlib

import numpy as np

from cxrjax.data import leaks, pool, splits, subset


def test_patients_are_shared_within_a_data_set_only(listed):
  train = listed(["a", "b", "b", ""], name="one")
  other = listed(["c", "d"], name="two")
  assert leaks.check([train], listed(["b", "c", "b", "a"], name="one")) == ("one/a", "one/b")
  assert leaks.check([train, other], listed(["c", "d", "d"], name="two")) == ("two/c", "two/d")
  assert leaks.check([train], listed(["c", "d"], name="one")) == ()
  assert leaks.check([train], listed(["a"], name="two")) == ()
  assert leaks.check([], train) == ()
  assert leaks.check([train], listed(["", ""], name="one")) == ()  # nobody knows


def test_pools_and_subsets_keep_their_patients_names(listed):
  one, two = listed(["a", "b", ""], name="one"), listed(["a", "c"], name="two")
  both = pool.Pool([one, two])
  assert splits.patient_keys(both) == ("one/a", "one/b", "", "two/a", "two/c")
  assert leaks.check([both], one) == ("one/a", "one/b")
  assert leaks.check([two], both) == ("two/a", "two/c")
  part = subset.take(both, "100 %")
  assert splits.patient_keys(part) == splits.patient_keys(both)
  train, test = (subset.take_fold(both, "1 of 2", role) for role in ("train", "test"))
  assert leaks.check([train], test) == () and leaks.check([train, test], both)


def test_remembered_patients_are_recognised():
  rng = np.random.default_rng(0)
  names = [f"set/p{i}" for i in rng.permutation(4000)]
  remembered = leaks.remember([*names[:3000], *names[:50], ""])
  assert remembered.dtype == np.uint64 and len(remembered) == 3000
  assert (np.diff(remembered.astype(object)) > 0).all()
  assert leaks.overlap(remembered, [*names[2500:], names[2999], ""]) == tuple(
    sorted(names[2500:3000]))
  assert leaks.overlap(remembered, names[3000:]) == ()
  assert leaks.overlap(remembered, []) == () and leaks.overlap(leaks.remember([]), names) == ()
  np.testing.assert_array_equal(leaks.remember(names[2999::-1]), remembered)


def test_what_is_remembered_is_the_same_everywhere_and_survives_a_file(tmp_path):
  # Written down: a workdir of today must be understood by every later version.
  assert leaks.remember(["tfds:a/p1", "tfds:a/p2"]).tolist() == REMEMBERED
  np.save(tmp_path / "patients.npy", leaks.remember(["tfds:a/p1"]))
  assert leaks.overlap(np.load(tmp_path / "patients.npy"), ["tfds:a/p1", "x"]) == ("tfds:a/p1",)
  assert b"p1" not in (tmp_path / "patients.npy").read_bytes()
  # Without the salt it is another number: hashes of other programs say nothing about ours.
  assert leaks.remember(["tfds:a/p1"])[0] not in _plain("tfds:a/p1")


def _plain(name):
  return [int.from_bytes(hashlib.new(kind, name.encode()).digest()[:8], order)
          for kind in ("sha256", "blake2b", "md5") for order in ("little", "big")]


REMEMBERED = [11179966948404325394, 16089480543241079965]
