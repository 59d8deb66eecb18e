import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.losses import classification

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0], [-3.0, 1.0, 1.0]], np.float32)


def entropy(p, q):
  """-sum p log q of one image, in float64."""
  return -sum(a * np.log(b) for a, b in zip(p, q, strict=True) if a > 0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_is_cross_entropy_of_smoothed_weighted_labels(smoothing):
  labels = np.array([[1, 0, 0], [0, 0, 1], [np.nan, 0, 0]], np.float32)
  weights = np.array([0.5, 1.0, 4.0], np.float32)
  loss, known = classification.softmax(
    jnp.asarray(LOGITS), jnp.asarray(labels), jnp.asarray(weights), smoothing
  )
  expected = []
  for row, label in zip(LOGITS[:2].astype(float), labels[:2], strict=True):
    q = np.exp(row) / np.exp(row).sum()
    p = (1 - smoothing) * label + smoothing / 3
    expected.append(entropy(p, q) * weights[label.argmax()])
  np.testing.assert_allclose(loss, [*expected, 0.0], rtol=1e-6)
  np.testing.assert_array_equal(known, [1, 1, 0])
  if not smoothing:  # by hand: three equal scores
    assert loss[1] == pytest.approx(4 * np.log(3))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_sigmoid_is_cross_entropy_of_what_is_known(smoothing):
  labels = np.array([[1, 0, np.nan], [0, 1, 0.25], [np.nan, np.nan, np.nan]], np.float32)
  weights = np.array([[1, 1], [2, 3], [1, 0.5]], np.float32)
  loss, known = classification.sigmoid(
    jnp.asarray(LOGITS), jnp.asarray(labels), jnp.asarray(weights), smoothing
  )
  for i, j in np.ndindex(3, 3):
    if np.isnan(labels[i, j]):
      assert loss[i, j] == 0 and known[i, j] == 0
      continue
    p = 1 / (1 + np.exp(-float(LOGITS[i, j])))
    y = (1 - smoothing) * labels[i, j] + smoothing / 2
    expected = -(y * np.log(p) * weights[j, 1] + (1 - y) * np.log(1 - p) * weights[j, 0])
    assert loss[i, j] == pytest.approx(expected, rel=1e-5) and known[i, j] == 1


def test_unknown_labels_have_no_gradient_and_no_part_in_the_mean():
  labels = jnp.asarray([[1.0, jnp.nan], [jnp.nan, jnp.nan]])

  def mean(logits):
    return classification.mean_of_known(*classification.sigmoid(logits, labels, jnp.ones((2, 2))))

  logits = jnp.asarray([[0.3, 5.0], [-7.0, 2.0]])
  value, gradient = jax.value_and_grad(mean)(logits)
  assert value == pytest.approx(np.log1p(np.exp(-0.3)), rel=1e-6)
  assert gradient[0, 0] != 0 and jnp.count_nonzero(gradient) == 1
  nothing = classification.mean_of_known(jnp.zeros(3), jnp.zeros(3))
  assert nothing == 0
