import itertools

import numpy as np
import pytest

from cxrjax.core import hash_random
from cxrjax.core.errors import UserError
from cxrjax.data.loading import sampling


def test_splitmix64_published_outputs():
  # The sequence from state 0 as printed in Vigna's reference implementation's tests.
  expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
  assert hash_random.splitmix64(0, 4).tolist() == expected


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_every_epoch_is_a_permutation(n):
  for epoch in range(3):
    assert sorted(sampling.epoch_order(5, epoch, n).tolist()) == list(range(n))


def test_seed_and_epoch_change_the_order():
  orders = {
    sampling.epoch_order(seed, epoch, 50).tobytes() for seed in range(4) for epoch in range(4)
  }
  assert len(orders) == 16


def test_elements_run_on_over_epochs():
  whole = sampling.elements(3, 0, 40, 7)
  assert whole.tolist() == [i for e in range(6) for i in sampling.epoch_order(3, e, 7)][:40]
  for start, stop in ((0, 7), (5, 9), (6, 29), (13, 14), (20, 20)):
    np.testing.assert_array_equal(sampling.elements(3, start, stop, 7), whole[start:stop])


def test_uniform_is_uniform_and_its_start_does_not_depend_on_n():
  u = hash_random.uniform("key", 20000)
  assert u.min() >= 0 and u.max() < 1
  counts = np.histogram(u, bins=20, range=(0, 1))[0]
  assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-squared, 19 degrees of freedom, 0.001
  np.testing.assert_array_equal(hash_random.uniform("key", 10), u[:10])
  assert not np.array_equal(hash_random.uniform("other", 10), u[:10])


def test_uniforms_are_uniform_one_by_one():
  keys = [f"key/{i}" for i in range(50)] + ["", "ä"]
  assert hash_random.uniforms(keys).tolist() == [hash_random.uniform(key, 1)[0] for key in keys]
  assert hash_random.uniforms([]).shape == (0,)


def groups(*sizes):
  ends = np.cumsum((0, *sizes))
  return [np.arange(a, b, dtype=np.int32) for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize(
  "weights, expected",
  [
    ((1, 1), [1, 1]),
    ((2, 1), [2, 1]),
    ((0.5, 0.25, 0.25), [2, 1, 1]),
    ((0.1, 0.7, 0.2), [1, 7, 2]),
    ((3.0,), [1]),
    ((1 / 3, 2 / 3), [1, 2]),
    ((112120, 5856), [14015, 732]),
    ((1e-300, 1), None),
  ],
)
def test_quotas(weights, expected):
  found = sampling.quotas(weights)
  assert found == expected or (expected is None and found == [1, sampling.LONGEST_PERIOD])


def test_quotas_of_any_weights_are_close():
  rng = np.random.default_rng(0)
  for _ in range(50):
    weights = rng.uniform(0.01, 1, rng.integers(2, 9))
    found = np.array(sampling.quotas(weights.tolist()))
    assert found.min() > 0
    assert np.abs(found - weights / weights.sum() * found.sum()).max() < 1


@pytest.mark.parametrize("weights", [(0.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0)])
def test_weights_that_are_none(weights):
  with pytest.raises(ValueError, match="positive"):
    sampling.quotas(weights)


@pytest.mark.parametrize(
  "sizes, weights",
  [
    ((7, 3), (1, 1)),
    ((5, 1, 11), (0.5, 0.2, 0.3)),
    ((4,), (2,)),
    ((6, 30, 2), (1.0, 2.7182818, 9)),
  ],
)
def test_any_window_of_a_mixture_is_a_slice_of_the_whole(sizes, weights):
  whole = sampling.mixture(3, 0, 300, groups(*sizes), weights)
  for start, stop in ((0, 1), (0, 300), (7, 7), (99, 131), (1, 299), (250, 251)):
    found = sampling.mixture(3, start, stop, groups(*sizes), weights)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, whole[start:stop])
  late = sampling.mixture(3, 10**12, 10**12 + 50, groups(*sizes), weights)
  np.testing.assert_array_equal(
    late[20:], sampling.mixture(3, 10**12 + 20, 10**12 + 50, groups(*sizes), weights)
  )


def test_a_mixture_meets_its_weights_in_every_stretch():
  sizes, weights = (40, 9, 300), (0.5, 0.2, 0.3)
  rows = sampling.mixture(1, 0, 5000, groups(*sizes), weights)
  owner = np.searchsorted(np.cumsum(sizes), rows, side="right")
  for start in range(0, 4990, 37):
    assert np.bincount(owner[start : start + 10], minlength=3).tolist() == [5, 2, 3]
  # A batch of any size is off by little, also where the pattern is long.
  weights = (0.512345678, 0.2000001, 0.3)
  owner = np.searchsorted(
    np.cumsum(sizes), sampling.mixture(1, 0, 5000, groups(*sizes), weights), side="right"
  )
  for k, w in enumerate(np.array(weights) / sum(weights)):
    drift = np.cumsum(owner == k) - w * np.arange(1, 5001)
    assert np.ptp(drift) < 3


def test_a_mixture_draws_each_groups_rows_equally_often_and_in_new_orders():
  sizes = (5, 8)
  rows = sampling.mixture(2, 0, 3000, groups(*sizes), (3, 1))
  for group in groups(*sizes):
    mine = rows[np.isin(rows, group)]
    n, epochs = len(group), len(mine) // len(group)
    orders = mine[: epochs * n].reshape(epochs, n)
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(group, (epochs, 1)))
    assert len(np.unique(orders, axis=0)) > min(epochs, 50) // 2


def test_a_mixture_depends_on_its_seed_and_groups_differ():
  same = groups(50, 50)
  a, b = (sampling.mixture(seed, 0, 100, same, (1, 1)) for seed in (0, 1))
  assert not np.array_equal(a, b)
  first, second = a[a < 50], a[a >= 50] - 50
  assert not np.array_equal(first, second)


def test_an_empty_group():
  with pytest.raises(UserError, match="part 1 of the pool"):
    sampling.mixture(0, 0, 4, groups(3, 0), (1, 1))
