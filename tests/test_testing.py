"""Conformance checks: what keeps to the interfaces passes, the rest is told what is missing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import testing
from cxrjax.data import base as data_base
from cxrjax.data import open_source
from cxrjax.evals import base, probe
from cxrjax.methods import byol, classify, dino, mae, simclr, simsiam
from cxrjax.metrics.intervals import Interval
from cxrjax.models import resnet, vit
from cxrjax.models.base import Encoder
from cxrjax.models.features import Features

VIT = vit.Model(variant="Nu", patch_size=8, image_size=32)


@dataclasses.dataclass(frozen=True)
class Pooled(Encoder):
  """The smallest network: a linear map of the mean of the image's columns."""

  fault: str = ""
  features: int = 4

  def init(self, key):
    key = jax.random.key(0) if self.fault == "constant" else key
    dtype = jnp.float16 if self.fault == "half" else jnp.float32
    return {"kernel": jax.random.normal(key, (32, self.features), dtype)}

  def encode(self, params, x, *, keys=None, intermediates=(), patches=True, train=False):
    if isinstance(x, tuple):
      return tuple(self.encode(params, images) for images in x)
    cls = x.mean((1, 3)) @ params["kernel"]
    if self.fault == "batch":
      cls = cls - cls.mean(0)
    if self.fault == "blind":
      cls = 0 * cls
    if self.fault == "gradient":
      cls = cls + jnp.sqrt(jnp.maximum(params["kernel"].sum() * 0, 0))
    return Features(cls[:, :2] if self.fault == "short" else cls, None, {})


def test_a_network_that_keeps_to_the_interface():
  testing.check_encoder(Pooled(), image_size=32)


@pytest.mark.parametrize(
  "fault, requirement",
  [
    ("constant", r"init\(key\) depends on the key"),
    ("half", "parameters are float32, but kernel is float16"),
    ("batch", "evaluation sees every image alone"),
    ("blind", "features depend on the image"),
    ("short", r"cls has the shape \(4, 4\), not \(4, 2\)"),
    ("gradient", "the gradient with respect to kernel is finite"),
  ],
)
def test_a_network_that_does_not(fault, requirement):
  with pytest.raises(AssertionError, match=requirement):
    testing.check_encoder(Pooled(fault), image_size=32)


@pytest.mark.full
@pytest.mark.parametrize(
  "encoder",
  [VIT, resnet.Model(depth=18, width=8, small_stem=True)],
  ids=lambda encoder: type(encoder).__module__.rpartition(".")[2],
)
def test_networks_of_the_package(encoder):
  testing.check_encoder(encoder)


SMALL = {"hidden": 32, "dim": 16}
METHODS = [
  (simclr, SMALL),
  pytest.param(simsiam, {"hidden": 32, "dim": 16}, marks=pytest.mark.full),
  pytest.param(byol, {"hidden": 32, "dim": 16}, marks=pytest.mark.full),
  pytest.param(
    dino,
    {"prototypes": 32, "hidden": 32, "bottleneck": 16, "local_crops": 2},
    marks=pytest.mark.full,
  ),
  pytest.param(mae, {"crops": 1}, marks=pytest.mark.full),
  (classify, {"crops": 1}),
]


@pytest.mark.parametrize("method, options", METHODS)
def test_methods_of_the_package(method, options):
  testing.check_method(method.Method, VIT, **options)


@dataclasses.dataclass(frozen=True)
class Faulty(simclr.Method):
  fault: str = ""

  def loss(self, params, state, batch, key, step):
    loss, (state, metrics) = super().loss(params, state, batch, key, step)
    if self.fault == "nan":
      loss = loss / 0
    if self.fault == "stopped":
      params = jax.lax.stop_gradient(params)
      loss = super().loss(params, state, batch, key, step)[0]
    if self.fault == "metrics":
      metrics = {"accuracy": metrics["accuracy"]}
    if self.fault == "state":
      state = {**state, "count": step}
    return loss, (state, metrics)


@pytest.mark.parametrize(
  "fault, requirement",
  [
    ("nan", "the loss is a finite number"),
    ("stopped", "the gradient reaches the encoder"),
    ("metrics", "metrics have feature_std"),
    ("state", "state keeps its structure"),
  ],
)
def test_a_method_that_does_not(fault, requirement):
  with pytest.raises(AssertionError, match=requirement):
    testing.check_method(Faulty, VIT, fault=fault, **SMALL)


@dataclasses.dataclass(frozen=True)
class Overconfident(classify.Method):
  def predict(self, params, images):
    return 2 * super().predict(params, images)


def test_predictions_that_are_none():
  with pytest.raises(AssertionError, match="predictions are probabilities"):
    testing.check_method(Overconfident, VIT, crops=1)


def test_what_derives_from_no_base_class():
  with pytest.raises(AssertionError, match=r"a subclass of cxrjax\.models\.base\.Encoder"):
    testing.check_encoder(object())


def test_sources_of_the_package():
  testing.check_source(open_source("mini"))
  testing.check_source(open_source("phantom", n=8))


class Wrong(data_base.Source):
  def __init__(self, fault):
    self._source, self._fault = open_source("phantom", n=8), fault
    self.info, self.table = self._source.info, self._source.table
    if fault == "ids":
      self.table = dataclasses.replace(self.table, ids=("a",) * 8)

  def __len__(self):
    return 9 if self._fault == "length" else 8

  def __getitem__(self, index):
    record = self._source[index]
    if self._fault == "mask":
      return dataclasses.replace(record, mask=255 * record.mask)
    if self._fault == "random":
      noise = np.random.default_rng().integers(0, 9, record.image.shape, dtype=np.uint8)
      return dataclasses.replace(record, image=record.image // 2 + noise)
    if self._fault == "labels":
      return dataclasses.replace(record, labels=1 - record.labels)
    return record


@pytest.mark.parametrize(
  "fault, requirement",
  [
    ("length", "table.ids has an entry for each of 9 images"),
    ("ids", "table.ids are unique"),
    ("mask", "mask is uint8, 1 in the lungs"),
    ("random", "is the same every time"),
    ("labels", "labels are those of the table"),
  ],
)
def test_a_source_that_does_not(fault, requirement):
  with pytest.raises(AssertionError, match=requirement):
    testing.check_source(Wrong(fault))


def evaluator(kind=probe.Evaluator, **options):
  data = {"name": "phantom", "n": 24, "size": 32}
  return kind(data=data, size=32, **options)


def test_evaluators_of_the_package():
  testing.check_evaluator(evaluator(ks=(5,), l2=(1.0,)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mistaken(base.LabelEvaluator):
  fault: str = ""
  calls: list = dataclasses.field(default_factory=list)

  def run(self, function, params, data, mesh=None, progress=False):
    x = self.features_of(function, params, data, mesh, progress)["test"]
    self.calls.append(1)
    value = float(np.nanmean(x)) + (len(self.calls) if self.fault == "random" else 0)
    low = value + (1 if self.fault == "outside" else 0)
    result = base.Result({"mean": Interval(value, low, low, len(x), "none")})
    if self.fault == "number":
      result.metrics["mean"] = value
    if self.fault == "score":
      result.scores["mean"] = "high"
    return result.metrics if self.fault == "dict" else result


@pytest.mark.parametrize(
  "fault, requirement",
  [
    ("random", "metrics are a function of the arguments"),
    ("number", "mean as cxrjax.metrics.intervals.Interval"),
    ("outside", "mean inside its interval"),
    ("score", "the score mean as a number"),
    ("dict", "returns cxrjax.evals.base.Result"),
  ],
)
def test_an_evaluator_that_does_not(fault, requirement):
  with pytest.raises(AssertionError, match=requirement):
    testing.check_evaluator(evaluator(Mistaken, fault=fault))
