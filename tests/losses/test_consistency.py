import jax
import jax.numpy as jnp
import numpy as np

from cxrjax.losses.consistency import squared_difference


def test_mean_over_images_and_classes_and_no_gradient_to_the_target():
  p, target = jnp.array([[0.9, 0.1], [0.5, 0.5]]), jnp.array([[0.6, 0.4], [0.5, 0.5]])
  # (0.3^2 + 0.3^2 + 0 + 0) / 4
  np.testing.assert_allclose(squared_difference(p, target), 0.045, rtol=1e-6)
  to_p, to_target = jax.grad(squared_difference, argnums=(0, 1))(p, target)
  np.testing.assert_allclose(to_p, (p - target) / 2, rtol=1e-6)
  np.testing.assert_array_equal(to_target, 0)
