"""DINO's loss against a loop over pairs in NumPy, hand-worked cases and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax.losses import dino


def reference(student, teacher_logits, center, student_temp, teacher_temp):
  """Equation 3 as written: for every teacher view, every other student view, every image."""
  student, teacher_logits = student.astype(np.float64), teacher_logits.astype(np.float64)
  total, pairs = 0.0, 0
  for t in range(teacher_logits.shape[1]):
    for s in range(student.shape[1]):
      if s == t:
        continue
      for i in range(len(student)):
        g = (teacher_logits[i, t] - center) / teacher_temp
        p = np.exp(g - g.max())
        p /= p.sum()
        z = student[i, s] / student_temp
        log_q = z - z.max() - np.log(np.exp(z - z.max()).sum())
        total -= (p * log_q).sum()
        pairs += 1
  return total / pairs


@pytest.mark.parametrize("views,globals_,batch,k", [(2, 2, 3, 5), (6, 2, 4, 33), (5, 3, 1, 7)])
def test_agrees_with_the_pairwise_reference(views, globals_, batch, k):
  rng = np.random.default_rng(views)
  student = rng.normal(size=(batch, views, k)).astype(np.float32)
  teacher = rng.normal(size=(batch, globals_, k)).astype(np.float32)
  center = rng.normal(size=k).astype(np.float32)
  p = dino.teacher_probabilities(jnp.asarray(teacher), jnp.asarray(center), 0.04)
  got = dino.cross_entropy(jnp.asarray(student), p, 0.1)
  want = reference(student, teacher, center, 0.1, 0.04)
  assert got == pytest.approx(want, rel=1e-5)


def test_hand_worked():
  # One image, two views, two prototypes. The teacher is certain of prototype 0 in view 0 and of
  # prototype 1 in view 1; the student's logits are 0, so every pair costs ln 2.
  teacher = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
  got = dino.cross_entropy(jnp.zeros((1, 2, 2)), teacher, 0.1)
  assert got == pytest.approx(np.log(2), rel=1e-6)
  # A student that agrees across views: -ln(1 / (1 + exp(-10))) a pair.
  student = jnp.array([[[0.0, 1.0], [1.0, 0.0]]])
  want = np.log1p(np.exp(-10))
  assert dino.cross_entropy(student, teacher, 0.1) == pytest.approx(want, abs=1e-6)


def test_pairs_of_one_view_with_itself_do_not_count():
  rng = np.random.default_rng(0)
  student = rng.normal(size=(1, 2, 4)).astype(np.float32)
  p = jax.nn.softmax(jnp.asarray(rng.normal(size=(1, 2, 4)), jnp.float32))
  grad = jax.grad(lambda t: dino.cross_entropy(jnp.asarray(student), t, 0.1))(p)
  # d loss / d P_0 depends on student view 1 only.
  other = student.copy()
  other[:, 0] += 1.0
  grad_other = jax.grad(lambda t: dino.cross_entropy(jnp.asarray(other), t, 0.1))(p)
  np.testing.assert_allclose(grad[:, 0], grad_other[:, 0], rtol=1e-5)
  assert not np.allclose(grad[:, 1], grad_other[:, 1])


def test_gradient_agrees_with_finite_differences():
  rng = np.random.default_rng(1)
  student = rng.normal(size=(2, 3, 4)).astype(np.float32)
  teacher = rng.normal(size=(2, 2, 4)).astype(np.float32)
  p = dino.teacher_probabilities(jnp.asarray(teacher), jnp.zeros(4), 0.5)
  grad = np.asarray(jax.grad(lambda s: dino.cross_entropy(s, p, 0.5))(jnp.asarray(student)))
  for at in [(0, 0, 0), (1, 1, 2), (0, 2, 3)]:
    up, down = student.copy(), student.copy()
    up[at] += 1e-3
    down[at] -= 1e-3
    center = np.zeros(4)
    slope = (
      reference(up, teacher, center, 0.5, 0.5) - reference(down, teacher, center, 0.5, 0.5)
    ) / (up[at] - down[at])
    assert grad[at] == pytest.approx(slope, abs=1e-4)


def test_no_gradient_reaches_the_teacher():
  def loss(g):
    p = dino.teacher_probabilities(g, jnp.zeros(4), 0.04)
    return dino.cross_entropy(jnp.ones((2, 3, 4)) * jnp.arange(4.0), p, 0.1)

  assert not jax.grad(loss)(jnp.ones((2, 2, 4))).any()


def test_center_is_a_moving_average_over_views_and_images():
  logits = jnp.array([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
  got = dino.update_center(jnp.array([10.0, 20.0]), logits, 0.9)
  np.testing.assert_allclose(got, [0.9 * 10 + 0.1 * 4, 0.9 * 20 + 0.1 * 5], rtol=1e-6)
