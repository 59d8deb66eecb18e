import hashlib
import io
import os
import stat

import numpy as np
from dicoms import dicom as encode_dicom

from cxrjax.data.sources import file_hashes


def facts_of(contents, key=b"k"):
  facts = file_hashes.Facts(len(contents))
  reads = []

  def opened(row):
    reads.append(row)
    if contents[row] is None:
      raise OSError("gone")
    return io.BytesIO(contents[row])

  def learn(rows):
    reads.clear()
    facts.learn(np.array(rows, np.int64), opened, key, lambda: None, "reading")
    return sorted(reads)

  return facts, learn


def test_each_file_is_read_once_and_a_missing_one_again():
  contents = [b"a" * 1000, b"b", None, b""]
  facts, learn = facts_of(contents)
  assert learn([0, 2]) == [0, 2] and learn([0, 1, 2, 3]) == [1, 2, 3] and learn([0, 1, 3]) == []
  assert facts.known.tolist() == [True, True, False, True]
  for row in (0, 1, 3):
    assert facts.digests[row].tobytes() == hashlib.sha256(contents[row]).digest()[:16]
  assert not facts.digests[2].any()


def test_headers_of_dicom_files_are_read_on_the_way(texture):
  pixels = texture(20, 20)
  contents = [
    encode_dicom(pixels),
    encode_dicom(pixels, PatientID="other", PatientSex="M", ViewPosition="LL", PatientAge=None),
    encode_dicom(pixels, Modality="CT"),
    b"no image",
    encode_dicom(pixels)[:140],
  ]
  facts, learn = facts_of(contents)
  learn(range(5))
  assert [file_hashes.SEXES[c] for c in facts.sex_codes] == ["F", "M", "", "", ""]
  assert [file_hashes.VIEWS[c] for c in facts.view_codes] == ["PA", "L", "", "", ""]
  np.testing.assert_array_equal(facts.ages, [45, np.nan, np.nan, np.nan, np.nan])
  assert facts.patients.any(axis=1).tolist() == [True, True, False, False, False]
  assert (facts.patients[0] != facts.patients[1]).any() and facts.known.all()
  digest = hashlib.sha256(contents[0]).digest()[:16]
  assert facts.digests[0].tobytes() == digest


def test_one_secret_per_cache_unless_the_environment_has_one(cache, monkeypatch, tmp_path):
  monkeypatch.delenv(file_hashes.KEY, raising=False)
  key = file_hashes.patient_key()
  assert len(key) == 32 and file_hashes.patient_key() == key
  assert file_hashes.patient_key(str(tmp_path / "other")) != key
  assert stat.S_IMODE(os.stat(cache / "patients.key").st_mode) == 0o600
  (cache / "patients.key").write_bytes(b"short")
  assert len(file_hashes.patient_key()) == 32
  monkeypatch.setenv(file_hashes.KEY, "secret")
  assert file_hashes.patient_key() == file_hashes.patient_key(str(tmp_path / "third")) != key
