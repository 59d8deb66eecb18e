"""The same views on eight devices as on one, and no traffic between them."""

import pytest
from small import program

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from cxrjax.views.multicrop import Recipe

assert jax.device_count() == 8
recipe = Recipe(global_size=32, local_size=16, local_crops=2, rotate=5.0)
images = np.random.default_rng(0).integers(0, 256, (16, 48, 48, 1), np.uint8)
one = jax.jit(recipe)(jax.random.key(3), images)
for kind, index in ((AxisType.Auto, (jnp.arange(16),)), (AxisType.Explicit, ())):
  mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(kind, kind))
  placed = jax.device_put(images, NamedSharding(mesh, P(("data", "fsdp"))))
  key = jax.device_put(jax.random.key(3), NamedSharding(mesh, P()))
  compiled = jax.jit(recipe).lower(key, placed, *index).compile()
  many = compiled(key, placed, *index)
  for name in ("global", "local"):
    shards = many[name].addressable_shards
    assert len(shards) == 8 and all(s.data.shape[1] == 2 for s in shards)
    np.testing.assert_allclose(many[name], one[name], atol=2e-5)
  for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
    assert word not in compiled.as_text(), word
print("same views")
"""


@pytest.mark.full
def test_eight_devices_give_the_views_of_one():
  assert "same views" in program(SCRIPT)
