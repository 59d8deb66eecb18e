import numpy as np
import pytest

from cxrjax.core.errors import UserError
from cxrjax.data.base import Source as SourceProtocol
from cxrjax.data.sources import phantom


def lung_values(source, indices):
  """Mean gray value inside the lungs, relative to the rest of the body's spread."""
  found = []
  for i in indices:
    record = source[i]
    image, lung = record.image[..., 0].astype(float), record.mask[..., 0] > 0
    found.append((image[lung].mean() - image.mean()) / image.std())
  return np.array(found)


def test_is_a_source():
  source = phantom.Source(n=8, size=48)
  assert isinstance(source, SourceProtocol)
  record = source[3]
  assert record.image.shape == record.mask.shape == (48, 48, 1)
  assert record.image.dtype == record.mask.dtype == np.uint8
  assert (record.id, record.patient, record.site) == tuple(
    getattr(source.table, k)[3] for k in ("ids", "patients", "sites")
  )
  np.testing.assert_array_equal(record.labels, source.table.labels[3])


def test_an_image_is_a_function_of_seed_split_and_index():
  a, b = phantom.Source(n=8, size=48), phantom.Source(n=500, size=48)
  for i in (7, 0, 3):
    np.testing.assert_array_equal(a[i].image, b[i].image)
  assert a.table.patients == b.table.patients[:8] and a.table.sites == b.table.sites[:8]
  np.testing.assert_array_equal(a.table.labels, b.table.labels[:8])
  others = [phantom.Source("test", n=8, size=48), phantom.Source(n=8, size=48, seed=1)]
  assert all((a[i].image != other[i].image).any() for other in others for i in range(8))


def test_small_images_are_drawn_once(monkeypatch):
  source = phantom.Source(n=4, size=48, seed=77)
  first = source[3]
  monkeypatch.setattr(phantom, "draw", None)
  again = phantom.Source(n=4, size=48, seed=77)[3]
  assert np.array_equal(first.image, again.image) and np.array_equal(first.mask, again.mask)
  with pytest.raises(TypeError):
    phantom.Source(n=4, size=48, seed=78)[3]


def test_the_table_draws_nothing(monkeypatch):
  monkeypatch.setattr(phantom, "draw", None)
  table = phantom.Source("all", n=3000).table
  assert len(table.ids) == len(set(table.ids)) == 9000
  assert abs(table.labels[:, 1].mean() - 0.5) < 0.03
  assert set(table.sites) == {"site0", "site1"}


def test_patients_have_several_images_one_site_and_one_split():
  parts = {name: phantom.Source(name, n=400).table for name in ("train", "val", "test")}
  owners = [set(t.patients) for t in parts.values()]
  assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])
  table = parts["train"]
  counts = np.unique(table.patients, return_counts=True)[1]
  assert set(counts) == {1, 2, 3}
  sites = {}
  for patient, site in zip(table.patients, table.sites, strict=True):
    assert sites.setdefault(patient, site) == site


def test_all_is_the_three_splits():
  whole, val = phantom.Source("all", n=5, size=40), phantom.Source("val", n=5, size=40)
  assert len(whole) == 15
  np.testing.assert_array_equal(whole[7].image, val[2].image)
  with pytest.raises(IndexError):
    val[5]


def test_opacities_whiten_the_lungs_and_nothing_else_tells():
  source = phantom.Source(n=240, size=64)
  positive = source.table.labels[:, 1] == 1
  values = lung_values(source, range(240))
  apart = (values[positive, None] > values[None, ~positive]).mean()
  assert 0.6 < apart < 0.995  # visible, but brightness alone does not decide
  border = np.array([np.delete(source[i].image, range(4, 60), 0).mean() for i in range(240)])
  assert 0.38 < (border[positive, None] > border[None, ~positive]).mean() < 0.62


def test_without_contrast_the_class_cannot_be_seen():
  source = phantom.Source(n=200, size=48, opacity_contrast=0)
  positive = source.table.labels[:, 1] == 1
  values = lung_values(source, range(200))
  assert 0.37 < (values[positive, None] > values[None, ~positive]).mean() < 0.63


def test_masks_are_lungs():
  source = phantom.Source(n=30, size=96)
  for i in range(30):
    mask = source[i].mask[..., 0]
    assert set(np.unique(mask)) == {0, 1} and 0.12 < mask.mean() < 0.45
    left, right = mask[:, :48].sum(), mask[:, 48:].sum()
    assert 0.4 < left / right < 2.5


def test_same_anatomy_other_shot():
  source = phantom.Source(n=60, size=64)
  patients = source.table.patients
  pairs = [(i, i + 1) for i in range(59) if patients[i] == patients[i + 1]]
  strangers = [(i, i + 1) for i in range(59) if patients[i] != patients[i + 1]]

  def overlap(pair):
    a, b = (source[i].mask[..., 0] > 0 for i in pair)
    return (a & b).sum() / (a | b).sum()

  assert np.mean([overlap(p) for p in pairs]) > np.mean([overlap(p) for p in strangers])
  assert all((source[a].image != source[b].image).any() for a, b in pairs)


def test_sites_look_different():
  source = phantom.Source(n=200, size=48, sites=2)
  site = np.array(source.table.sites) == "site1"
  means = np.array([source[i].image.mean() for i in range(200)])
  apart = (means[site, None] > means[None, ~site]).mean()
  assert max(apart, 1 - apart) > 0.6


def test_the_shortcut_is_what_was_asked_for():
  def agreement(p):
    table = phantom.Source(n=4000, marker_shortcut=p).table
    return np.mean(
      [(s == "site1") == bool(y) for s, y in zip(table.sites, table.labels[:, 1], strict=True)]
    )

  assert abs(agreement(0.0) - 0.5) < 0.03
  assert abs(agreement(0.6) - 0.8) < 0.03
  assert agreement(1.0) == 1.0


def test_fingerprint_tells_drawings_apart():
  prints = {
    phantom.Source(**o).info.fingerprint
    for o in (
      {},
      {"seed": 1},
      {"size": 64},
      {"sites": 3},
      {"opacity_contrast": 0.9},
      {"marker_shortcut": 0.5},
      {"prevalence": 0.2},
    )
  }
  assert len(prints) == 7
  assert phantom.Source().info.fingerprint == phantom.Source().info.fingerprint


@pytest.mark.parametrize(
  "options, word",
  [
    ({"n": 0}, "n=0"),
    ({"size": 8}, "size=8"),
    ({"sites": 0}, "sites"),
    ({"marker_shortcut": 1.5}, "marker_shortcut"),
    ({"marker_shortcut": 0.5, "sites": 1}, "sites"),
    ({"split": "tset"}, "valid: train, val, test, all"),
  ],
)
def test_bad_options(options, word):
  with pytest.raises(UserError, match=word):
    phantom.Source(**options)
