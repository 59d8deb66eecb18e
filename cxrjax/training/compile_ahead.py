"""Traces a run's programs for devices that are not attached, to lower or compile ahead of time.

    mesh = sharding.make_mesh()
    step = ahead.train_step(config, mesh, target=Target("tpu", mesh=mesh))
    step.lower(lowering_platforms=("tpu",))

lowers a step for as many TPUs as there are local devices of any kind; with a mesh of devices that a
plugin describes (`jax.experimental.topologies`), `ahead.train_step(config, mesh).lower()` targets
them and can be compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cxrjax.core.target import Target
from cxrjax.data.loading.device_arrays import Placement
from cxrjax.data.loading.loader import Fetch
from cxrjax.evals import features
from cxrjax.methods.base import Labels, SupervisedMethod
from cxrjax.training.build import build_train_step
from cxrjax.training.sharding import AXES
from cxrjax.training.train_step import TrainStep
from cxrjax.views.multicrop import Recipe

LABELS = Labels(("no", "yes"), True, (1, 1), (2, 2))  # two arbitrary classes for supervised methods
EXAMPLES = 5232  # training images of the configs' `:paper` variants


def build_step(
  config: Mapping[str, Any],
  mesh: Mesh,
  *,
  target: Target | None = None,
  examples: int = EXAMPLES,
  labels: Labels = LABELS,
) -> TrainStep:
  """The training step of a config, as the run builds it, without its data.

  Args:
    config: of a training run.
    mesh: target devices.
    target: decides types and kernels; by default the mesh's devices.
    examples: number of training images.
    labels: of the training images.
  """
  resident = _resident(config)
  return build_train_step(
    config,
    mesh,
    examples=examples,
    labels=labels,
    resident=resident,
    fetch=Fetch(Placement(mesh), resident),
    target=target,
  )


def train_step(
  config: Mapping[str, Any],
  mesh: Mesh,
  *,
  target: Target | None = None,
  examples: int = EXAMPLES,
  labels: Labels = LABELS,
) -> jax.stages.Traced:
  """`TrainStep.run` of a config, traced with the shapes and shardings of its state and data.

  Args:
    config: see `build_step`.
    mesh: see `build_step`.
    target: see `build_step`.
    examples: see `build_step`.
    labels: see `build_step`.

  Raises:
    UserError: the config is invalid.
  """
  built = build_step(config, mesh, target=target, examples=examples, labels=labels)
  data, batch = inputs(config, mesh, _resident(config), examples, labels)
  state = built.abstract(built.batch_spec(data, batch))
  batches = jax.tree.map(lambda x: _with_steps(x, built.block), batch)
  return built.run.trace(state, data, batches, _struct((), jnp.int32, mesh))


def eval_step(
  config: Mapping[str, Any],
  mesh: Mesh,
  *,
  target: Target | None = None,
  batch: int = 64,
  examples: int = EXAMPLES,
  labels: Labels = LABELS,
) -> jax.stages.Traced:
  """The evaluators' program, traced: the method's predictions, or else the encoder's features.

  Args:
    config: see `build_step`.
    mesh: see `build_step`.
    target: see `build_step`.
    batch: number of images, a multiple of the devices.
    examples: see `build_step`.
    labels: see `build_step`.
  """
  built = build_step(config, mesh, target=target, examples=examples, labels=labels)
  method = built.method
  state = built.abstract(
    built.batch_spec(*inputs(config, mesh, _resident(config), examples, labels))
  )
  predicts = isinstance(method, SupervisedMethod)
  params = (method.network_params if predicts else method.encoder_params)(
    state["params"], state["method_state"]
  )

  def encode(params: Any, x: jax.Array) -> jax.Array:
    return method.predict(params, x) if predicts else method.encoder.encode(params, x).cls

  size = cast(Recipe, built.recipe).global_size
  images = _struct((batch, size, size, 1), jnp.uint8, mesh, AXES)
  program = features.compiled(encode, 0.5, 0.25, mesh, vectors=False)
  return program.trace(params, images, None)


def inputs(
  config: Mapping[str, Any], mesh: Mesh, resident: bool, examples: int, labels: Labels
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Shapes and shardings of `Loader.data` and of a batch."""
  batch_size, side, num_classes = config["batch_size"], config["data"]["size"], len(labels.classes)
  mask_shapes = {"masks": (side, side, 1)} if config["data"].get("masks") else {}
  image_shapes = {"pixels" if resident else "image": (side, side, 1), **mask_shapes}
  if resident:
    padded = -(-examples // mesh.size) * mesh.size
    data = {
      name: _struct((padded, *shape), jnp.uint8, mesh, AXES) for name, shape in image_shapes.items()
    }
    data["labels"] = _struct((examples, num_classes), jnp.float32, mesh)
    return data, {"index": _struct((batch_size,), jnp.int32, mesh)}
  return {}, {
    **{
      name: _struct((batch_size, *shape), jnp.uint8, mesh, AXES)
      for name, shape in image_shapes.items()
    },
    "labels": _struct((batch_size, num_classes), jnp.float32, mesh, AXES),
    "index": _struct((batch_size,), jnp.int32, mesh, AXES),
  }


def batch_shapes(
  config: Mapping[str, Any], labels: Labels = LABELS
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a batch with pixels, as returned by `Fetch`."""
  batch_size, side = config["batch_size"], config["data"]["size"]
  images = jax.ShapeDtypeStruct((batch_size, side, side, 1), jnp.uint8)
  return {
    "image": images,
    "index": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    "labels": jax.ShapeDtypeStruct((batch_size, len(labels.classes)), jnp.float32),
    **({"mask": images} if config["data"].get("masks") else {}),
  }


def _resident(config: Mapping[str, Any]) -> bool:
  """Whether the config allows the images to be resident on the devices."""
  return config["data"]["storage"] in ("auto", "resident")


def _struct(shape: tuple[int, ...], dtype: Any, mesh: Mesh, *spec: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))


def _with_steps(x: jax.ShapeDtypeStruct, steps: int) -> jax.ShapeDtypeStruct:
  """Prepends an axis of steps."""
  spec = PartitionSpec(None, *x.sharding.spec)
  return jax.ShapeDtypeStruct(
    (steps, *x.shape), x.dtype, sharding=NamedSharding(x.sharding.mesh, spec)
  )
