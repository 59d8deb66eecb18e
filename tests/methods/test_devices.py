"""Every method's step is the same on eight devices as on one: its means, negatives and banks are of
the global batch."""

import pytest
from small import REPOSITORY, full, program

from cxrjax.config.config_files import load_config

CONFIGS = sorted(
  p.stem
  for p in (REPOSITORY / "configs").glob("*.py")
  if load_config(p)("tiny").get("task") == "cxrjax.tasks.train"
)

SCRIPT = """
import sys
import jax, jax.numpy as jnp, numpy as np
import lab
from cxrjax.config.config_files import load_config
from cxrjax.config.instantiate import build
from cxrjax.core.durations import Clock
from cxrjax.methods.base import Labels
from cxrjax.training.optimizer import Optimizer
from cxrjax.training.restore import build_method
from cxrjax.training.sharding import make_mesh
from cxrjax.training.train_step import TrainStep

assert jax.device_count() == 8
config = load_config(sys.argv[1])("tiny").to_dict()
clock = Clock(total_steps=4, steps_per_epoch=1.0, batch_size=8)
config["model"] |= {"width": 32, "depth": 1, "heads": 2}
encoder = build(config["model"], "Model", "config.model")
known = 4 if config["data"].get("labelled") else 8
labels = Labels(("normal", "opacity"), True, (known // 2, known // 2), (known, known))
method = build_method(config["method"], encoder, clock, labels)
recipe = build(config["views"], "Recipe", "config.views")
batch = lab.phantoms(8, config["data"]["size"], masks=config["data"].get("masks", False))
one_hot = np.eye(2, dtype=np.float32)[np.arange(8) % 2]
batch["labels"] = jnp.asarray(np.where(np.arange(8)[:, None] < known, one_hot, np.nan))

def run(devices):
  mesh = make_mesh(1, devices)
  train_step = TrainStep(
    method=method, recipe=recipe, mesh=mesh, seed=0, fetch=lambda data, batch: batch,
    # Adam's first steps have the size of the rate whatever the gradient's: rounding would show.
    optimizer=Optimizer(clock=clock, name="optax.identity", lr={"start": 0.1}, lr_batch=0))
  from jax.sharding import NamedSharding, PartitionSpec
  placed = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
  state = train_step.init(train_step.batch_spec({}, placed))
  losses = []
  for _ in range(2):
    state, metrics = train_step.run(state, {}, jax.tree.map(lambda x: x[None], placed), np.int32(1))
    losses.append(float(metrics["loss"][0]))
  return jax.tree.map(np.asarray, state), losses

(one, a), (eight, b) = run(jax.devices()[:1]), run(jax.devices())
np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # a cosine may be near 0
leaves = jax.tree_util.tree_leaves_with_path(one)
for (path, x), y in zip(leaves, jax.tree.leaves(eight), strict=True):
  np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-4, err_msg=jax.tree_util.keystr(path))
print("same state", a)
"""


@pytest.mark.parametrize("name", [name if name == "dino" else full(name) for name in CONFIGS])
def test_eight_devices_give_the_step_of_one(name):
  assert "same state" in program(SCRIPT, str(name))
