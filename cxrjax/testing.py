"""Conformance checks of a user's own encoder, method, source or evaluator, to call from a test.

    from cxrjax import testing

    def test_my_network():
      testing.check_encoder(MyNet(width=8), image_size=64)

A check raises `AssertionError` that says which requirement does not hold. The networks and methods
of cxrjax pass the same checks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax.core import compile_effort
from cxrjax.core.durations import Clock
from cxrjax.data.base import Record, Source
from cxrjax.evals.base import Evaluator, Result
from cxrjax.methods.base import Labels, Method, SupervisedMethod, join_stats, split_stats
from cxrjax.metrics.intervals import Interval
from cxrjax.models.base import Encoder
from cxrjax.models.features import Features

PLATFORMS = ("cpu", "cuda", "tpu")


def check_encoder(
  encoder: Any, image_size: int = 64, channels: int = 1, tolerance: float = 1e-4
) -> None:
  """Checks a network: `init`, `encode`, `features`; see `cxrjax.models` for examples.

  That parameters and outputs are a function of the key and the images; shapes and types; that
  evaluation sees every image alone; that training has a finite gradient with respect to each
  parameter; and that the program is lowered for CPU, CUDA and TPU, and is exported and comes back.

  Args:
    encoder: the network.
    image_size: pixels per side of the images.
    channels: of the images.
    tolerance: of differences between equal results that are computed in another order.

  Raises:
    AssertionError: a requirement does not hold.
  """
  _require_subclass(encoder, Encoder)
  params = encoder.init(jax.random.key(0))
  _require(_equal(params, encoder.init(jax.random.key(0))), "init(key) depends on the key alone")
  _require(not _equal(params, encoder.init(jax.random.key(1))), "init(key) depends on the key")
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    _require(leaf.dtype == jnp.float32, f"parameters are float32, but {name} is {leaf.dtype}")

  images = jax.random.normal(jax.random.key(2), (4, image_size, image_size, channels))
  encode = _jit(lambda p, x: encoder.encode(p, x))
  features = encode(params, images)
  _require(isinstance(features, Features), "encode returns cxrjax.models.features.Features")
  _check_features(features, encoder, len(images))
  _require(_equal(features, encode(params, images)), "encode is a function of its arguments")
  alone = encode(params, images[1:2])
  _require(
    bool(jnp.allclose(features.cls[1:2], alone.cls, atol=tolerance, rtol=tolerance)),
    "evaluation sees every image alone: a batch of one gives other features",
  )
  _require(
    float(jnp.abs(features.cls[0] - features.cls[1]).max()) > 0, "features depend on the image"
  )
  views = jax.eval_shape(lambda p, x: encoder.encode(p, (x[:2], x[2:]), train=True), params, images)
  _require(
    isinstance(views, Sequence) and len(views) == 2,
    "encode takes a sequence of batches, and returns one Features for each",
  )
  _check_gradient(encoder, params, images)
  for platform in PLATFORMS:
    _lower(encode, platform, params, images)
  _check_export(lambda p, x: encoder.encode(p, x).cls, params, images, features.cls, tolerance)


def check_method(
  make: type[Method],
  encoder: Any,
  image_size: int = 32,
  crops: int = 2,
  local_crops: int = 0,
  **options: Any,
) -> None:
  """Checks a method; see `cxrjax.methods.base.Method`.

  That the loss is a finite function of its arguments, with a finite gradient that reaches the
  encoder; that state keeps its structure; that the metrics of every method are there; that a step
  of gradient descent changes what is evaluated or what is trained; that the step is lowered for
  CPU, CUDA and TPU; and that predictions, where it makes some, are probabilities and can be
  exported.

  Args:
    make: the method's class.
    encoder: network that it trains.
    image_size: pixels per side of the large crops.
    crops: number of large crops.
    local_crops: number of small crops, of half the size.
    **options: of the method, as in `config.method`.

  Raises:
    AssertionError: a requirement does not hold.
  """
  batch_size = 8
  images: dict[str, jax.Array] = {}
  clock = Clock.start("10 steps", batch_size, batch_size)
  if make.learns_from == "labels":
    options["labels"] = Labels(("no", "yes"), True, (4, 4), (8, 8))
  method = make(encoder=encoder, clock=clock, **options)
  _require_subclass(method, Method)
  for name, count, size in (("global", crops, image_size), ("local", local_crops, image_size // 2)):
    if count:
      shape = (count, batch_size, size, size, 1)
      images[name] = jax.random.normal(jax.random.key(len(images)), shape)
  batch = {
    **images,
    "labels": jax.nn.one_hot(jnp.arange(batch_size) % 2, 2),
    "position": jnp.arange(batch_size),
    "index": jnp.arange(batch_size),
  }
  spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
  params, state = method.init(jax.random.key(0), spec)
  _require(
    _equal((params, state), method.init(jax.random.key(0), spec)), "init is a function of the key"
  )

  @_jit
  def step(params: Any, state: Any, batch: Any, key: Any, index: Any) -> Any:
    value_and_grad = jax.value_and_grad(method.loss, has_aux=True)
    (loss, (state, metrics)), grads = value_and_grad(params, state, batch, key, index)
    updated = jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)
    return updated, method.after_update(updated, state, index), loss, metrics, grads

  arguments = (params, state, batch, jax.random.key(1), jnp.zeros((), jnp.int32))
  outputs = step(*arguments)
  updated, new_state, loss, metrics, grads = outputs
  _require(_equal(outputs, step(*arguments)), "a step is a function of its arguments")
  _require(loss.shape == () and bool(jnp.isfinite(loss)), f"the loss is a finite number: {loss}")
  _require(loss.dtype == jnp.float32, f"the loss is float32, not {loss.dtype}")
  _require(all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads)), "gradients are finite")
  _require(
    any(bool((g != 0).any()) for g in jax.tree.leaves(grads.get("encoder", grads))),
    "the gradient reaches the encoder",
  )
  _require(_alike(state, new_state), "state keeps its structure, shapes and types")
  for name in ("feature_std", "effective_rank"):
    _require(name in metrics, f"metrics have {name}, as `feature_health` gives")
  for name, value in metrics.items():
    _require(value.shape == (), f"metrics are numbers, but {name} has the shape {value.shape}")
  evaluated = method.encoder_params(updated, new_state)
  features = encoder.encode(evaluated, images["global"][0]).cls
  _require(bool(jnp.isfinite(features).all()), "encoder_params are parameters of the encoder")
  advice = method.check_collapse({name: float(value) for name, value in metrics.items()})
  _require(advice is None or isinstance(advice, str), "check_collapse returns None or a sentence")
  for name, schedule in method.schedules.items():
    _require(math.isfinite(float(schedule(0))), f"the schedule {name} gives a number")
  for platform in PLATFORMS:
    _lower(step, platform, *arguments)
  if isinstance(method, SupervisedMethod):
    _check_predictions(method, method.network_params(updated, new_state), images["global"][0])


def _check_predictions(method: SupervisedMethod, params: Any, images: jax.Array) -> None:
  predict = _jit(method.predict)
  predictions = predict(params, images)
  shape = (len(images), len(method.classes)) if method.classes else images.shape
  _require(
    predictions.shape == shape and predictions.dtype == jnp.float32,
    f"predictions are float32 of shape {shape}, not {predictions.dtype} {predictions.shape}",
  )
  _require(
    bool(((predictions >= 0) & (predictions <= 1)).all()), "predictions are probabilities, 0 to 1"
  )
  for platform in PLATFORMS:
    _lower(predict, platform, params, images)
  _check_export(method.predict, params, images, predictions)


def check_source(source: Source, images: int = 8) -> None:
  """Checks a source of radiographs; see `cxrjax.data.base.Source`.

  That its table and description agree with its length before an image is read, and that records are
  a function of the index, of the types and shapes that the rest expects.

  Args:
    source: what to check.
    images: how many of its images are read, evenly spaced.

  Raises:
    AssertionError: a requirement does not hold.
  """
  _require_subclass(source, Source)
  count, table, info = len(source), source.table, source.info
  _require(count > 0, "it has images")
  for name in ("ids", "patients", "sites"):
    length = len(getattr(table, name))
    _require(length == count, f"table.{name} has an entry for each of {count} images, not {length}")
  _require(len(set(table.ids)) == count, "table.ids are unique")
  _require(
    table.labels.shape == (count, len(info.classes)) and table.labels.dtype == np.float32,
    f"table.labels are float32 of shape {(count, len(info.classes))}, a column for each class; NaN "
    "where a label is unknown",
  )
  _require(bool(info.fingerprint), "info.fingerprint is a hash of the content")
  if info.exclusive and info.classes:
    known = table.labels[np.isfinite(table.labels).all(axis=1)]
    _require(bool((known.sum(axis=1) == 1).all()), "exclusive classes: every known row has one 1")
  for index in np.unique(np.linspace(0, count - 1, images).astype(int)).tolist():
    record = source[index]
    _check_record(record, source, index)
    _require(
      np.array_equal(record.image, source[index].image), f"source[{index}] is the same every time"
    )


def check_evaluator(
  evaluator: Evaluator, function: Callable[..., Any] | None = None, params: Any = None
) -> None:
  """Checks an evaluator; see `cxrjax.evals.base.Evaluator`.

  That its results are metrics with intervals and a function of its arguments, that a network whose
  outputs are not finite gets undefined metrics and no error, and that facts and arrays can be
  written. Its images are opened.

  Args:
    evaluator: what to check.
    function: `function(params, x)`, what it judges; by default features, four numbers an image.
      For an evaluator of predictions it must be given.
    params: of `function`; a tree of arrays.

  Raises:
    AssertionError: a requirement does not hold.
  """
  _require_subclass(evaluator, Evaluator)
  if function is None:
    function, params = _quarters, jnp.ones(4)
  data = evaluator.load(progress=False)
  json.dumps(evaluator.describe(data))
  result = evaluator.run(function, params, data)
  _check_result(result, "run")
  again = evaluator.run(function, params, data)
  _require(
    all(_same(value, again.metrics.get(name)) for name, value in result.metrics.items()),
    "metrics are a function of the arguments",
  )
  broken = evaluator.run(function, jax.tree.map(lambda leaf: leaf * jnp.nan, params), data)
  _check_result(broken, "run, with outputs that are not finite,")
  floor = evaluator.floor(data)
  if floor is not None:
    _check_result(floor, "floor")
  pixels, findings = evaluator.examples(data, 2)
  _require(len(pixels) == len(findings) or not findings, "examples have a text for each image")


def _quarters(params: jax.Array, x: jax.Array) -> jax.Array:
  """Four features an image: the mean of each quarter."""
  b, h, w, _ = x.shape
  quarters = x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, 2, h // 2, 2, w // 2).mean((2, 4))
  return params * quarters.reshape(b, 4)


def _check_result(result: Any, of: str) -> None:
  _require(isinstance(result, Result), f"{of} returns cxrjax.evals.base.Result")
  for name, value in result.metrics.items():
    _require(isinstance(value, Interval), f"{of} gives {name} as cxrjax.metrics.intervals.Interval")
    _require(
      not value.low > value.value and not value.value > value.high,
      f"{of} gives {name} inside its interval: {value}",
    )
  for name, value in result.scores.items():
    _require(isinstance(value, float), f"{of} gives the score {name} as a number, not {value!r}")
  for name, array in result.arrays.items():
    _require(np.asarray(array).dtype != object, f"{of} gives {name} as an array of numbers or text")


def _same(a: Any, b: Any) -> bool:
  return repr(a) == repr(b)


def _check_record(record: Record, source: Source, index: int) -> None:
  name = f"source[{index}]"
  image = record.image
  _require(
    image.dtype in (np.uint8, np.uint16) and image.ndim == 3 and image.shape[2] == 1,
    f"{name}.image is uint8 or uint16 of shape [h w 1], not {image.dtype} {image.shape}",
  )
  _require(
    np.array_equal(record.labels, source.table.labels[index], equal_nan=True),
    f"{name}.labels are those of the table",
  )
  _require(record.id == source.table.ids[index], f"{name}.id is that of the table")
  if record.mask is not None:
    _require(
      record.mask.dtype == np.uint8 and int(record.mask.max(initial=0)) <= 1,
      f"{name}.mask is uint8, 1 in the lungs and 0 elsewhere",
    )


def _check_features(features: Features, encoder: Any, count: int) -> None:
  shape, length = features.cls.shape, encoder.features
  _require(shape == (count, length), f"cls has the shape {(count, length)}, not {shape}")
  _require(features.cls.dtype == jnp.float32, f"cls is float32, not {features.cls.dtype}")
  _require(bool(jnp.isfinite(features.cls).all()), "features are finite")
  if features.patches is not None:
    patches = features.patches.shape
    _require(
      len(patches) == 3 and patches[0] == count, f"patches have the shape [b n d], not {patches}"
    )


def _check_gradient(encoder: Any, params: Any, images: jax.Array) -> None:
  trained, stats = split_stats(params)

  def loss(trained: Any) -> jax.Array:
    features = encoder.encode(join_stats(trained, stats), images, train=True)
    weights = jax.random.normal(jax.random.key(3), features.cls.shape)
    return (features.cls * weights).sum()

  grads = _jit(jax.grad(loss))(trained)
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    _require(bool(jnp.isfinite(leaf).all()), f"the gradient with respect to {name} is finite")


def _check_export(
  function: Any, params: Any, images: jax.Array, outputs: jax.Array, tolerance: float = 1e-4
) -> None:
  """Exports a function for batches of any size, and compares what comes back."""
  any_batch = jax.export.symbolic_shape("b, ...", like=images.shape)
  exported = jax.export.export(jax.jit(function))(
    params, jax.ShapeDtypeStruct(any_batch, images.dtype)
  )
  again = jax.export.deserialize(exported.serialize())
  _require(
    bool(jnp.allclose(again.call(params, images), outputs, atol=tolerance)),
    "an exported network gives the same outputs",
  )


def _lower(function: Any, platform: str, *arguments: Any) -> None:
  """Lowers a function for a platform; where that fails, the error says for which."""
  try:
    function.trace(*arguments).lower(lowering_platforms=(platform,))
  except Exception as error:
    raise AssertionError(f"it is not lowered for {platform}: {error}") from error


def _jit(function: Callable[..., Any]) -> Any:
  return jax.jit(function, compiler_options=compile_effort.options(once=True))


def _equal(a: Any, b: Any) -> bool:
  leaves_a, leaves_b = jax.tree.leaves(a), jax.tree.leaves(b)
  return len(leaves_a) == len(leaves_b) and all(
    bool(jnp.array_equal(x, y, equal_nan=True)) for x, y in zip(leaves_a, leaves_b, strict=True)
  )


def _alike(a: Any, b: Any) -> bool:
  def described(tree: Mapping[str, Any]) -> Any:
    return jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)

  return bool(described(a) == described(b))


def _require_subclass(value: Any, base: type) -> None:
  _require(
    isinstance(value, base),
    f"{type(value).__name__} is a subclass of {base.__module__}.{base.__name__}",
  )


def _require(holds: bool, requirement: str) -> None:
  if not holds:
    raise AssertionError(requirement)
