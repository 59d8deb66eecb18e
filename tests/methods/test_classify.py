import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import full

from cxrjax.core.errors import UserError
from cxrjax.methods.base import Labels
from cxrjax.methods.classify import Method
from cxrjax.views.resample import center_crop
from tests.methods import lab

TWO = Labels(("NORMAL", "PNEUMONIA"), True, (8, 8), (16, 16))
FINDINGS = Labels(("edema", "effusion", "nodule"), False, (4, 8, 0), (16, 12, 0))


def method(labels=TWO, steps=lab.STEPS, **options):
  return Method(
    **{"encoder": lab.encoder(), "clock": lab.clock(steps), "labels": labels, **options}
  )


def batch(labels):
  """Sixteen phantoms that bear labels of their own."""
  rng = np.random.default_rng(0)
  k = len(labels.classes)
  if labels.exclusive:
    y = np.eye(k)[np.arange(lab.IMAGES) % k]
  else:
    y = rng.integers(0, 2, (lab.IMAGES, k)).astype(float)
    y[:, -1] = np.nan
    y[::3, 1] = np.nan
  return {**lab.phantoms(), "labels": jnp.asarray(y, jnp.float32)}


@pytest.mark.parametrize("labels", [TWO, full(FINDINGS)])
def test_learns_labels_by_heart_and_resumes(labels):
  learner = method(labels, momentum=0.9, encoder=lab.encoder(depth=2))
  work, data = lab.train_step(learner, lab.recipe(global_crops=1), 2e-3), batch(labels)
  state, log = lab.fit(work, data)
  assert log[-1]["loss"] < 0.05 and log[-1]["accuracy"] == 1
  assert learner.check_collapse(log[-1]) is None
  params = learner.network_params(state["params"], state["method_state"])
  p = np.asarray(learner.predict(params, (data["image"] / 255.0 - 0.5) / 0.25))
  y = np.asarray(data["labels"])
  known = ~np.isnan(y)
  assert ((p > 0.5) == (y == 1))[known].all()
  if labels.exclusive:
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
  lab.resumes(work, data)


def test_predictions_are_means_over_views():
  learner = method()
  params, state = learner.init(jax.random.key(0), {})
  network = learner.network_params(params, state)
  network["head"]["kernel"] *= 100  # so that views differ
  images = (lab.phantoms()["image"] / 255.0 - 0.5) / 0.25
  several = method(test_scales=(1.0, 0.8), test_flip=True)
  views = [center_crop(images, scale, flip) for scale in (1.0, 0.8) for flip in (False, True)]
  each = [learner.predict(network, view) for view in views]
  assert np.ptp(np.stack(each), 0).max() > 0.01
  np.testing.assert_allclose(several.predict(network, images), sum(each) / 4, atol=1e-5)


@pytest.mark.full
def test_all_of_the_options_together_train():
  learner = method(
    TWO,
    smoothing=0.1,
    mixup=0.8,
    dropout=0.2,
    class_weights="balanced",
    momentum={"start": 0.99, "end": 1.0},
  )
  _, log = lab.fit(lab.train_step(learner, lab.recipe(global_crops=1), 2e-3), batch(TWO))
  assert log[-1]["loss"] < 0.9 * log[0]["loss"]
  assert all(np.isfinite(list(m.values())).all() for m in log)


def test_balanced_weights_give_classes_the_same_total():
  uneven = Labels(("a", "b", "c", "none has it"), True, (90, 9, 1, 0), (100,) * 4)
  weights = method(uneven, class_weights="balanced")._weights[:, 1]
  np.testing.assert_allclose(weights[:3] * [90, 9, 1], 100 / 3, rtol=1e-6)
  assert weights[3] == 0
  found = method(FINDINGS, class_weights="balanced")._weights
  np.testing.assert_allclose(found[0] * [12, 4], 8)  # of 16 known
  np.testing.assert_allclose(found[1] * [4, 8], 6)  # of 12
  np.testing.assert_array_equal(found[2], 1)  # nothing is known of it


def test_the_moving_average_forgets_where_it_began():
  learner = method(momentum=0.9)
  params, state = learner.init(jax.random.key(0), {})
  moved = jax.tree.map(lambda x: x + 1.0, params)
  after = learner.after_update(moved, state, jnp.int32(0))["average"]
  # step 0: the smaller of 0.9 and 1 / 10
  np.testing.assert_allclose(after["head"]["bias"], params["head"]["bias"] + 0.9, rtol=1e-5)
  later = learner.after_update(moved, state, jnp.int32(1000))["average"]
  np.testing.assert_allclose(later["head"]["bias"], params["head"]["bias"] + 0.1, rtol=1e-5)


def test_batch_norm_trains_with_the_batch_and_predicts_with_running_statistics():
  learner = dataclasses.replace(method(), encoder=lab.Normed())
  state, _ = lab.fit(lab.train_step(learner, lab.recipe(global_crops=1), 1e-2), batch(TWO), 40)
  running = state["method_state"]["stats"]["bn1"]["running_mean"]
  assert jnp.abs(running).max() > 0.01
  params = learner.network_params(state["params"], state["method_state"])
  np.testing.assert_array_equal(params["encoder"]["bn1"]["running_mean"], running)


@pytest.mark.parametrize(
  "options, words",
  [
    ({"class_weights": "ballanced"}, "did you mean 'balanced'"),
    ({"class_weights": (1.0, 2.0, 3.0)}, "must be 2 numbers"),
    ({"smoothing": 1.0}, "config.method.smoothing"),
    ({"mixup": -1.0}, "config.method.mixup"),
    ({"labels": Labels((), True, (), ())}, "labelled source"),
  ],
)
def test_mistakes_are_named(options, words):
  with pytest.raises(UserError, match=words):
    method(**options)
