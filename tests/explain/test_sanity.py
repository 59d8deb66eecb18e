"""Maps must depend on what was learnt (Adebayo et al. 2018), and point at what was planted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import full

from cxrjax.explain import maps, sanity
from cxrjax.explain.maps import Head, explain
from cxrjax.models import resnet, vit

SIZE, SQUARE = 32, 8
NETWORKS = {
  "vit": vit.Model(
    variant="Nu",
    width=32,
    heads=2,
    depth=2,
    patch_size=8,
    image_size=SIZE,
    initial="xavier",
    dtype="float32",
  ),
  "resnet": resnet.Model(depth=18, width=4, small_stem=True, dtype="float32"),
}
CASES = [
  (n, m) if n == "vit" and m in ("rollout", "gradcam") else full(n, m)
  for n, network in NETWORKS.items()
  for m in maps.methods_for(network)
]


def images(n, seed):
  """Noise; those of class 1 have a bright square somewhere. The squares' corners are (y, x)."""
  rng = np.random.default_rng(seed)
  x = rng.normal(0, 0.5, (n, SIZE, SIZE, 1)).astype(np.float32)
  labels, corners = np.arange(n) % 2, rng.integers(0, SIZE // SQUARE, (n, 2)) * SQUARE
  for image, label, (top, left) in zip(x, labels, corners, strict=True):
    if label:
      image[top : top + SQUARE, left : left + SQUARE] += 1.5
  return x, labels, corners


@pytest.fixture(scope="module")
def trained(request):
  """A network, what it has learnt in 60 steps, and test images of class 1."""
  network = NETWORKS[request.param]
  key = jax.random.key(0)
  head = Head(jnp.zeros((network.features, 2)), jnp.zeros(2))
  state = {"encoder": network.init(key), "head": head}
  optimiser = optax.adam(3e-3)

  def loss(state, x, y):
    features = network.encode(state["encoder"], x, train=True)
    value = optax.softmax_cross_entropy_with_integer_labels(state["head"](features.cls), y).mean()
    return value, features.stats

  @jax.jit
  def step(state, opt, x, y):
    (_, stats), grads = jax.value_and_grad(loss, has_aux=True)(state, x, y)
    updates, opt = optimiser.update(grads, opt)
    state = optax.apply_updates(state, updates)
    return state if not stats else merge(state, stats), opt

  def merge(state, stats):
    def put(params, new):
      return (
        {
          k: put(v, new[k]) if isinstance(new.get(k), dict) else new.get(k, v)
          for k, v in params.items()
        }
        if isinstance(params, dict)
        else params
      )

    return {**state, "encoder": put(state["encoder"], stats)}

  opt = optimiser.init(state)
  for i in range(60):
    x, y, _ = images(32, i)
    state, opt = step(state, opt, x, y)
  x, y, corners = images(48, 1000)
  right = maps.predicted(network, state["encoder"], x, state["head"]) == y
  assert right.mean() > 0.9
  of = (y == 1) & right
  return network, state, x[of], corners[of]


@pytest.mark.parametrize(("trained", "method"), CASES, indirect=["trained"])
def test_random_weights_destroy_the_map(trained, method):
  network, state, x, _ = trained
  key = jax.random.key(7)
  learnt = explain(method, network, state["encoder"], x, head=state["head"], target=1)
  drawn = explain(
    method, network, network.init(key), x, head=sanity.random_head(state["head"], key), target=1
  )
  r = sanity.correlations(learnt, drawn)
  assert np.isfinite(r).mean() > 0.3
  assert abs(np.nanmean(r)) < 0.5
  again = explain(method, network, state["encoder"], x, head=state["head"], target=1)
  assert np.nanmin(sanity.correlations(learnt, again)) > 0.999


# Of the ResNet every cell of its last map sees nearly the whole of so small an image.
@pytest.mark.parametrize(
  ("trained", "method", "least"),
  [("vit", "gradcam", 0.3), ("vit", "occlusion", 0.6), full("resnet", "occlusion", 0.6)],
  indirect=["trained"],
)
def test_maps_of_a_class_lie_on_what_makes_it(trained, method, least):
  """The map's largest value lies in the square or 2 pixels beside it, by chance in 0.14."""
  network, state, x, corners = trained
  heat = maps.enlarge(
    explain(method, network, state["encoder"], x, head=state["head"], target=1), (SIZE, SIZE)
  )
  at = np.stack([np.unravel_index(h.argmax(), h.shape) for h in heat])
  inside = ((at >= corners - 2) & (at < corners + SQUARE + 2)).all(1)
  assert inside.mean() > least


def test_correlations():
  rng = np.random.default_rng(0)
  a = rng.random((3, 4, 5))
  np.testing.assert_allclose(sanity.correlations(a, a**3), 1)  # ranks alone count
  np.testing.assert_allclose(sanity.correlations(a, -a), -1)
  flat = np.zeros((3, 4, 5))
  assert np.isnan(sanity.correlations(a, flat)).all()
