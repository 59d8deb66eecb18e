import jax
import jax.numpy as jnp
import numpy as np

from cxrjax.views.mixing import mixup


def test_images_and_labels_are_mixed_in_one_proportion_with_the_image_from_the_other_end():
  keys = jax.random.split(jax.random.key(0), 400)
  images = jnp.broadcast_to(jnp.arange(400.0)[:, None, None, None], (400, 2, 2, 1))
  labels = jax.nn.one_hot(jnp.arange(400) % 2, 2).at[5, 1].set(jnp.nan)
  mixed, shares = mixup(keys, images, labels, 0.8)
  i = np.arange(400.0)
  own = (np.asarray(mixed)[:, 0, 0, 0] - (399 - i)) / (i - (399 - i))
  assert (mixed == mixed[:, :1, :1]).all()
  assert (own >= 0.5 - 1e-4).all() and (own <= 1 + 1e-4).all()
  for row in range(400):
    if row in (5, 394):  # one of the two is unknown
      assert np.isnan(shares[row]).any()
    else:  # the partner of an odd image is an even one, and the other way round
      np.testing.assert_allclose(shares[row, row % 2], own[row], atol=1e-3)
  # E max(s, 1 - s) of Beta(0.8, 0.8), by an independent sample
  draws = np.random.default_rng(0).beta(0.8, 0.8, 100_000)
  assert abs(own.mean() - np.maximum(draws, 1 - draws).mean()) < 0.03


def test_shares_depend_on_the_images_key_alone():
  keys = jax.random.split(jax.random.key(1), 6)
  images, labels = jnp.ones((6, 1, 1, 1)).at[:3].set(0.0), jnp.zeros((6, 1))
  whole, _ = mixup(keys, images, labels, 0.4)
  part, _ = mixup(keys[1:5], images[1:5], labels[1:5], 0.4)
  np.testing.assert_array_equal(whole[1:5], part)
