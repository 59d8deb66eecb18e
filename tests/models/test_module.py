"""The adapter between NNX modules and plain parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cxrjax.core.errors import UserError
from cxrjax.models import layers
from cxrjax.models.module import Net, param_count


class _Two(nnx.Module):
  def __init__(self, width, rngs):
    self.parts = nnx.List([layers.Linear(3, width, rngs=rngs), layers.Linear(width, 2, rngs=rngs)])

  def __call__(self, x):
    for part in self.parts:
      x = part(x)
    return x


NET = Net.of(_Two, width=4)


def test_parameters_are_plain_and_repeatable():
  params = NET.init(jax.random.key(0))
  assert type(params) is dict
  assert set(params["parts"]) == {"0", "1"}
  again = NET.init(jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, params, again)
  assert param_count(params) == 3 * 4 + 4 + 4 * 2 + 2
  other = NET.init(jax.random.key(1))
  assert np.abs(params["parts"]["0"]["kernel"] - other["parts"]["0"]["kernel"]).max() > 0


def test_applies_what_it_is_given():
  params = jax.tree.map(np.asarray, NET.init(jax.random.key(0)))
  x = jnp.ones((5, 3))
  first, second = (params["parts"][i] for i in "01")
  want = (x @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]
  np.testing.assert_allclose(NET.apply(params, x), want, rtol=1e-5)


def test_is_a_static_argument():
  run = jax.jit(lambda net, params, x: net.apply(params, x), static_argnums=0)
  params, x = NET.init(jax.random.key(0)), jnp.ones((5, 3))
  np.testing.assert_allclose(run(Net.of(_Two, width=4), params, x), NET.apply(params, x), rtol=1e-5)


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda p: p["parts"].pop("1"), "lack 'parts/1/"),
    (lambda p: p.update(extra=np.ones(1)), "unknown 'extra'"),
    (lambda p: p["parts"]["0"].update(bias=np.ones(5)), r"'parts/0/bias' has shape \(5,\)"),
  ],
)
def test_wrong_parameters_are_named(change, words):
  params = NET.init(jax.random.key(0))
  change(params)
  with pytest.raises(UserError, match=words):
    NET.apply(params, jnp.ones((5, 3)))
