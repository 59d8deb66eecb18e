import numpy as np
import pytest

from cxrjax.data.sources import mixture
from cxrjax.data.splits import leakage, patient_splits, subset


def test_patients_are_shared_within_a_data_set_only(listed):
  train = listed(["a", "b", "b", ""], name="one")
  other = listed(["c", "d"], name="two")
  assert leakage.shared_patients([train], listed(["b", "c", "b", "a"], name="one")) == (
    "one/a",
    "one/b",
  )
  assert leakage.shared_patients([train, other], listed(["c", "d", "d"], name="two")) == (
    "two/c",
    "two/d",
  )
  assert leakage.shared_patients([train], listed(["c", "d"], name="one")) == ()
  assert leakage.shared_patients([train], listed(["a"], name="two")) == ()
  assert leakage.shared_patients([], train) == ()
  assert leakage.shared_patients([train], listed(["", ""], name="one")) == ()  # nobody knows


@pytest.mark.parametrize(
  "shared, unknown, namings, expected",
  [
    (0, (0, 0), ("a", "a"), "none"),
    (
      0,
      (4, 0),
      ("a", "a"),
      "patients are unknown for 4 of 4 test images, so whether could not be checked",
    ),
    (
      0,
      (1, 9),
      ("a", "a"),
      "patients are unknown for 1 of 4 test images and for 9 of 9 training "
      "images, so whether could not be checked",
    ),
    (
      0,
      (1, 2),
      ("a", "a"),
      "patients are unknown for 1 of 4 test images and for 2 of 9 training "
      "images, so whether could only be checked in part, and none was found",
    ),
    (
      0,
      (0, 0),
      ("a", "b"),
      "a and b name patients in different ways, so whether could not be checked",
    ),
    (
      0,
      (4, 0),
      ("a", "b"),
      "patients are unknown for 4 of 4 test images, so whether could not be checked",
    ),
    (2, (0, 0), ("a", "a"), "some"),
    (2, (1, 0), ("a", "a"), "some; patients are unknown for 1 of 4 test images"),
  ],
)
def test_that_no_patient_is_shared_is_said_only_where_all_are_known(
  shared, unknown, namings, expected
):
  sets = [
    leakage.PatientCounts(n, u, (name,))
    for n, u, name in zip((4, 9), unknown, namings, strict=True)
  ]
  assert (
    leakage.summary(
      shared, sets, ("test images", "training images"), some="some", none="none", whether="whether"
    )
    == expected
  )


def test_pools_name_patients_as_their_sources_do(listed):
  both = mixture.Pool([listed(["a"], name="one"), listed(["b"], name="two")])
  assert both.info.naming == ("one", "two")
  one = leakage.count_known(["one/a"], listed(["a"], name="one").info)
  said = leakage.summary(
    0,
    (one, leakage.count_known(both.table.patients, both.info)),
    ("test", "training"),
    some="",
    none="none",
    whether="it",
  )
  assert said == (
    "one and two name patients in different ways, so it could only be checked in "
    "part, and none was found"
  )


def test_pools_and_subsets_keep_their_patients_names(listed):
  one, two = listed(["a", "b", ""], name="one"), listed(["a", "c"], name="two")
  both = mixture.Pool([one, two])
  assert patient_splits.patient_keys(both) == ("one/a", "one/b", "", "two/a", "two/c")
  assert leakage.shared_patients([both], one) == ("one/a", "one/b")
  assert leakage.shared_patients([two], both) == ("two/a", "two/c")
  part = subset.take(both, "100 %")
  assert patient_splits.patient_keys(part) == patient_splits.patient_keys(both)
  train, test = (subset.take_fold(both, "1 of 2", role) for role in ("train", "test"))
  assert leakage.shared_patients([train], test) == () and leakage.shared_patients(
    [train, test], both
  )


SECRET = b"s" * 32


def test_remembered_patients_are_recognised():
  rng = np.random.default_rng(0)
  names = [f"set/p{i}" for i in rng.permutation(4000)]
  remembered = leakage.fingerprint([*names[:3000], *names[:50], ""], SECRET)
  assert remembered.dtype == np.uint64 and len(remembered) == 3000 + 3
  assert (np.diff(remembered[3:].astype(object)) > 0).all()
  assert leakage.overlap(remembered, [*names[2500:], names[2999], ""], SECRET) == tuple(
    sorted(names[2500:3000])
  )
  assert leakage.overlap(remembered, names[3000:], SECRET) == ()
  assert leakage.overlap(remembered, [], SECRET) == ()
  assert leakage.overlap(leakage.fingerprint([], SECRET), names, SECRET) == ()
  assert leakage.overlap(leakage.fingerprint(["a/\udcff"], SECRET), ["a/\udcff"], SECRET) == (
    "a/\udcff",
  )


def test_a_guess_cannot_be_confirmed_without_the_secret(tmp_path):
  names = [f"set/{i:04d}" for i in range(50)]
  np.save(tmp_path / "patients.npy", leakage.fingerprint(names, SECRET))
  kept = np.load(tmp_path / "patients.npy")
  assert leakage.overlap(kept, names, SECRET) == tuple(names)
  for other in (b"", b"t" * 32, bytes(32), b"cxrjax/patients"):
    assert leakage.overlap(kept, names, other) is None
    salt = kept[:2].astype("<u8").tobytes()
    assert not np.isin(leakage._hashes(names, other, salt), kept).any()
  again = leakage.fingerprint(names, SECRET)  # nor are two files known to be of the same patients
  assert not np.isin(again, kept).any()
  assert leakage.overlap(kept[:0], names, SECRET) is None
