import numpy as np
import pytest

from cxrjax.data import order


def test_splitmix64_published_outputs():
  # The sequence from state 0 as printed in Vigna's reference implementation's tests.
  expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
  assert order.splitmix64(0, 4).tolist() == expected


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_every_epoch_is_a_permutation(n):
  for epoch in range(3):
    assert sorted(order.epoch_order(5, epoch, n).tolist()) == list(range(n))


def test_seed_and_epoch_change_the_order():
  orders = {order.epoch_order(seed, epoch, 50).tobytes() for seed in range(4) for epoch in range(4)}
  assert len(orders) == 16


def test_elements_run_on_over_epochs():
  whole = order.elements(3, 0, 40, 7)
  assert whole.tolist() == [i for e in range(6) for i in order.epoch_order(3, e, 7)][:40]
  for start, stop in ((0, 7), (5, 9), (6, 29), (13, 14), (20, 20)):
    np.testing.assert_array_equal(order.elements(3, start, stop, 7), whole[start:stop])


def test_uniform_is_uniform_and_its_start_does_not_depend_on_n():
  u = order.uniform("key", 20000)
  assert u.min() >= 0 and u.max() < 1
  counts = np.histogram(u, bins=20, range=(0, 1))[0]
  assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-squared, 19 degrees of freedom, 0.001
  np.testing.assert_array_equal(order.uniform("key", 10), u[:10])
  assert not np.array_equal(order.uniform("other", 10), u[:10])
