"""What every method must do: fit a few images without collapsing, and resume."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax.core.durations import Clock
from cxrjax.data.sources.phantom import Source
from cxrjax.losses import collapse
from cxrjax.models.base import Encoder
from cxrjax.models.vit import Features, Model
from cxrjax.training.optimizer import Optimizer
from cxrjax.training.sharding import make_mesh
from cxrjax.training.train_step import TrainStep
from cxrjax.views.multicrop import Recipe

STEPS, BLOCK, IMAGES = 100, 20, 16


def clock(steps: int = STEPS) -> Clock:
  """Sixteen images in every batch."""
  return Clock(total_steps=steps, steps_per_epoch=1.0, batch_size=IMAGES)


def encoder(**options: Any) -> Model:
  """A ViT that learns in a hundred steps."""
  return Model(
    **{
      "variant": "Nu",
      "depth": 1,
      "patch_size": 8,
      "image_size": 32,
      "initial": "xavier",
      "drop_path": 0.0,
      **options,
    }
  )


@dataclasses.dataclass(frozen=True)
class Normed(Encoder):
  """The least encoder with batch norm: a linear map of the pixels, normalised, rectified."""

  features: int = 8

  def init(self, key: jax.Array) -> Any:
    kernel = jax.random.normal(key, (32 * 32, self.features)) / 32
    norm = {
      "scale": jnp.ones(self.features),
      "running_mean": jnp.zeros(self.features),
      "running_var": jnp.ones(self.features),
    }
    return {"linear": {"kernel": kernel}, "bn1": norm}

  def encode(self, params: Any, x: Any, *, train: bool = False, **_: Any) -> Any:
    """Of images, or of groups of images one after the other."""
    if not isinstance(x, list | tuple):
      return self.encode(params, [x], train=train)[0]
    found, norm = [], params["bn1"]
    for group in x:
      y = group.reshape(len(group), -1) @ params["linear"]["kernel"]
      mean, var = (y.mean(0), y.var(0)) if train else (norm["running_mean"], norm["running_var"])
      norm = {
        **norm,
        "running_mean": 0.9 * norm["running_mean"] + 0.1 * y.mean(0),
        "running_var": 0.9 * norm["running_var"] + 0.1 * y.var(0, ddof=1),
      }
      running = {"bn1": {name: norm[name] for name in ("running_mean", "running_var")}}
      cls = jax.nn.relu(norm["scale"] * (y - mean) / jnp.sqrt(var + 1e-5))
      found.append(Features(cls, None, {}, running if train else None))
    return tuple(found)


def recipe(**options: Any) -> Recipe:
  """Two large crops that differ little."""
  return Recipe(
    **{
      "global_size": 32,
      "local_crops": 0,
      "global_scale": (0.9, 1.0),
      "ratio": (1.0, 1.0),
      "flip": 0.0,
      "jitter_prob": 0.0,
      "blur_prob": 0.0,
      "solarize_prob": 0.0,
      **options,
    }
  )


def phantoms(n: int = IMAGES, size: int = 32, masks: bool = False) -> dict[str, jax.Array]:
  """A fetched batch, with lung masks if so asked."""
  source = Source(split="train", n=n, size=size)
  records = [source[i] for i in range(n)]
  return {
    "image": jnp.asarray(np.stack([r.image for r in records])),
    "labels": jnp.zeros((n, 0)),
    "index": jnp.arange(n, dtype=jnp.int32),
    **({"mask": jnp.asarray(np.stack([r.mask for r in records]))} if masks else {}),
  }


def train_step(
  method: Any,
  views: Any,
  lr: float = 1e-3,
  devices: Any = None,
  accumulate: int = 1,
  **optimizer: Any,
) -> TrainStep:
  return TrainStep(
    method=method,
    recipe=views,
    fetch=lambda data, batch: batch,
    mesh=make_mesh(1, devices or jax.devices()[:1]),
    seed=0,
    block=BLOCK,
    accumulate=accumulate,
    optimizer=Optimizer(
      clock=method.clock, lr={"start": lr, "end": lr / 10, "warmup": "5 %"}, lr_batch=0, **optimizer
    ),
  )


def first_state(work: TrainStep, batch: dict[str, jax.Array]) -> Any:
  """The state before the first step, compiled and drawn once for a train step."""
  kept = vars(work)  # where a cached property is: a train step does not change
  if "first_state" not in kept:
    kept["first_state"] = on_host(work.init(work.batch_spec({}, batch)))
  return on_devices(*kept["first_state"])


def on_host(state: Any) -> tuple[Any, Any]:
  """A state's arrays, and where they were."""
  return jax.tree.map(np.array, state), jax.tree.map(lambda x: x.sharding, state)


def on_devices(arrays: Any, shardings: Any) -> Any:
  """The state again, a copy: a step takes what it is given. Placed otherwise, it would be compiled
  once more."""
  return jax.device_put(jax.tree.map(np.copy, arrays), shardings)


def fit(
  work: TrainStep, batch: dict[str, jax.Array], steps: int = STEPS, state: Any = None
) -> tuple[Any, list[dict[str, float]]]:
  """The state after some steps, and the metrics of the last step of every block."""
  state = first_state(work, batch) if state is None else state
  block = jax.tree.map(lambda x: jnp.broadcast_to(x, (BLOCK, *x.shape)), batch)
  log = []
  for start in range(0, steps, BLOCK):
    state, metrics = work.run(state, {}, block, np.int32(min(BLOCK, steps - start)))
    last = min(BLOCK, steps - start) - 1
    log.append({k: float(v[last]) for k, v in metrics.items()})
  return state, log


def features(method: Any, state: Any, images: jax.Array) -> np.ndarray:
  """Evaluated network's image features of gray levels u8[n s s 1]: f32[n d]."""
  params = method.encoder_params(state["params"], state["method_state"])
  return np.asarray(encode(method.encoder, params, (images / 255.0 - 0.5) / 0.25).cls)


@functools.partial(jax.jit, static_argnums=0)
def encode(encoder: Any, params: Any, x: jax.Array) -> Any:
  """A network's features, in one program: operation by operation each would be compiled."""
  return encoder.encode(params, x)


def assert_fits(
  method: Any,
  views: Any = None,
  *,
  loss: float,
  lr: float = 1e-3,
  spread: float = 0.2,
  rank: float = 2.0,
  masks: bool = False,
  **optimizer: Any,
) -> list[dict[str, float]]:
  """Learns sixteen phantoms without collapsing, and resumes bit for bit; returns the metrics.

  Both in one test, because compiling a step takes longer than a hundred of them.

  Args:
    loss: the last loss must be below this share of the first.
    spread: least spread of the features at the end (1: everywhere, 0: one point).
    rank: least effective rank of the features at the end.
    masks: give the recipe lung masks.
  """
  batch = phantoms(masks=masks)
  work = train_step(method, views or recipe(), lr, **optimizer)
  state, log = fit(work, batch)
  assert all(np.isfinite(list(m.values())).all() for m in log), log
  assert log[-1]["loss"] < loss * log[0]["loss"], [m["loss"] for m in log]
  found = jnp.asarray(features(method, state, batch["image"]))
  assert float(collapse.spread(found)) > spread, log[-1]
  assert float(collapse.participation_ratio(found)) > rank, log[-1]
  assert method.check_collapse(log[-1]) is None
  resumes(work, batch)
  return log


def assert_resumes(method: Any, views: Any = None, masks: bool = False, **optimizer: Any) -> None:
  """Two steps and two more are four, bit for bit, also from a state that was on disk."""
  resumes(train_step(method, views or recipe(), **optimizer), phantoms(masks=masks))


def resumes(work: TrainStep, batch: dict[str, jax.Array]) -> None:
  """Of a train step that is compiled: the same as `assert_resumes`."""
  whole, _ = fit(work, batch, 4)
  half, _ = fit(work, batch, 2)
  again, _ = fit(work, batch, 2, on_devices(*on_host(half)))
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(a, b)
