"""Linear probe: L2-regularised logistic regression on frozen features, solved to convergence.

There is no learning rate, number of epochs or seed, so the same features always give the same
number. It runs on the host in float64, because the problem is small and the solution is then exact:
full-batch L-BFGS along the features' principal axes, scaled by the curvature there, which makes the
problem nearly isotropic, so that a few dozen iterations suffice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Float, Float32, Float64

from cxrjax.metrics import roc

GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


@dataclasses.dataclass(frozen=True)
class Probe:
  """A fitted linear classifier.

  Attributes:
    centre: mean of the training features, f64[d].
    scale: their standard deviation (1 for a constant feature), f64[d].
    weight: f64[d k], for standardised features.
    bias: f64[k].
    exclusive: whether scores are a softmax over classes or a sigmoid for each.
    fitted: which classes could be fitted, bool[k].
  """

  centre: Float64[np.ndarray, "d"]
  scale: Float64[np.ndarray, "d"]
  weight: Float64[np.ndarray, "d k"]
  bias: Float64[np.ndarray, "k"]
  exclusive: bool
  fitted: np.ndarray

  def scores(self, features: Float[np.ndarray, "m d"]) -> Float32[np.ndarray, "m k"]:
    """Class probabilities; NaN for a class that could not be fitted."""
    logits = ((features - self.centre) / self.scale) @ self.weight + self.bias
    probabilities = np.full(logits.shape, np.nan, np.float32)
    fitted_logits = logits[:, self.fitted]
    probabilities[:, self.fitted] = (
      scipy.special.softmax(fitted_logits, axis=1)
      if self.exclusive
      else scipy.special.expit(fitted_logits)
    )
    return probabilities


@dataclasses.dataclass(frozen=True)
class Choice:
  """The probe that does best on validation.

  Attributes:
    probe: fitted on the training images with `l2`.
    l2: the chosen strength.
    table: (l2, validation AUROC, validation log loss) of every strength tried.
  """

  probe: Probe
  l2: float
  table: tuple[tuple[float, float, float], ...]


def fit(
  features: Float[np.ndarray, "n d"],
  labels: Float[np.ndarray, "n k"],
  exclusive: bool,
  grid: tuple[float, ...] = GRID,
  tolerance: float = 1e-7,
) -> list[Probe]:
  """Fits a logistic regression for every L2 strength.

  Minimises the mean log loss over images with a known label + l2 / 2 |w|^2, on features
  standardised by the training images' mean and standard deviation; the bias is not penalised. `l2`
  is 1 / (C n) in scikit-learn's terms. Two exclusive classes share one logit, more are multinomial,
  and labels that are not exclusive are separate problems, without their unknown (NaN) images.

  Args:
    features: one row per image, finite.
    labels: 1, 0 or NaN; one-hot where exclusive (a row with a NaN is left out).
    exclusive: one class per image.
    grid: L2 strengths, in any order.
    tolerance: on the gradient, in units scaled to a curvature of about 1.

  Returns:
    One probe per strength, in the order of `grid`.
  """
  x = features.astype(np.float64)
  if exclusive:
    known = ~np.isnan(labels).any(1)
    x, labels = x[known], labels[known]
  centre, scale = x.mean(0), x.std(0)
  # Rounding leaves a constant feature a deviation of about 1e-17; dividing by it gives noise.
  varies = scale > 1e-7 * (np.abs(centre) + 1e-12)
  scale = np.where(varies, scale, 1.0)
  x -= centre
  x /= scale
  x[:, ~varies] = 0
  # The axes only affect the path to the optimum, so a few thousand images suffice for them.
  sample = x[:: max(1, len(x) // max(4096, 4 * x.shape[1]))]
  power, axes = np.linalg.eigh(sample.T @ sample / len(sample))
  basis = (np.clip(power, 0, None), np.ascontiguousarray(axes))
  k = labels.shape[1]
  fitted = np.array([np.any(labels[:, c] == 1) and np.any(labels[:, c] == 0) for c in range(k)])
  fitted_classes = np.flatnonzero(fitted)
  weight, bias = np.zeros((len(grid), x.shape[1], k)), np.zeros((len(grid), k))
  if exclusive and len(fitted_classes) == 2:
    # One logit, whose weights are halved between the two classes.
    for g, w, b in _solve_path(x, labels[:, fitted_classes[1:]], basis, grid, tolerance):
      weight[g][:, fitted_classes] = np.concatenate([-w, w], 1) / 2
      bias[g, fitted_classes] = np.append(-b, b) / 2
  elif exclusive and len(fitted_classes) > 2:
    for g, w, b in _solve_path(x, labels[:, fitted_classes], basis, grid, tolerance):
      weight[g][:, fitted_classes], bias[g, fitted_classes] = w, b
  elif not exclusive:
    for c in fitted_classes:
      known = ~np.isnan(labels[:, c])
      part = x if known.all() else x[known]
      for g, w, b in _solve_path(part, labels[known, c : c + 1], basis, grid, tolerance):
        weight[g][:, c], bias[g, c] = w[:, 0], b[0]
  weight *= varies[:, None]
  return [Probe(centre, scale, weight[g], bias[g], exclusive, fitted) for g in range(len(grid))]


def choose(
  features: Float[np.ndarray, "n d"],
  labels: Float[np.ndarray, "n k"],
  val_features: Float[np.ndarray, "v d"],
  val_labels: Float[np.ndarray, "v k"],
  exclusive: bool,
  grid: tuple[float, ...] = GRID,
) -> Choice:
  """Fits on the training images and chooses the L2 that ranks the validation images best.

  Ordered by validation AUROC (mean of classes), then log loss, then the stronger L2. Where
  validation defines no AUROC (one class only), log loss decides.

  Args:
    features: of training images.
    labels: of the training images.
    val_features: of validation images, from other patients.
    val_labels: of the validation images.
    exclusive: one class per image.
    grid: L2 strengths to try.

  Returns:
    The choice, fitted on the training images alone, so that validation images can still choose a
    threshold.
  """
  probes = fit(features, labels, exclusive, grid)
  table = []
  for l2, probe in zip(grid, probes, strict=True):
    scores = probe.scores(val_features)
    table.append(
      (float(l2), roc.macro_auroc(scores, val_labels).value, log_loss(scores, val_labels))
    )
  best = min(
    range(len(grid)),
    key=lambda i: (
      -np.nan_to_num(round(table[i][1], 6), nan=0.0),
      np.nan_to_num(table[i][2], nan=np.inf),
      -table[i][0],
    ),
  )
  return Choice(probes[best], float(grid[best]), tuple(table))


def log_loss(scores: Float[np.ndarray, "n k"], labels: Float[np.ndarray, "n k"]) -> float:
  """Mean binary log loss over known labels and fitted classes, in nats; NaN if there are none."""
  p = np.clip(scores.astype(np.float64), 1e-12, 1 - 1e-12)
  loss = -(labels * np.log(p) + (1 - labels) * np.log(1 - p))
  known = ~np.isnan(loss)
  return float(loss[known].mean()) if known.any() else float("nan")


Basis = tuple[Float64[np.ndarray, "d"], Float64[np.ndarray, "d d"]]


def _solve_path(
  x: Float64[np.ndarray, "n d"],
  y: Float[np.ndarray, "n c"],
  basis: Basis,
  grid: tuple[float, ...],
  tolerance: float,
) -> Iterator[tuple[int, Float64[np.ndarray, "d c"], Float64[np.ndarray, "c"]]]:
  """Index in the grid, weights and bias for every strength.

  Goes from strong to weak, starting each fit at the previous optimum.
  """
  solution = None
  for g in np.argsort(-np.asarray(grid), kind="stable").tolist():
    solution = _solve(x, y, basis, grid[g], tolerance, solution)
    yield g, _matmul(basis[1], solution[:-1]), solution[-1]


def _solve(
  x: Float64[np.ndarray, "n d"],
  y: Float[np.ndarray, "n c"],
  basis: Basis,
  l2: float,
  tolerance: float,
  start: np.ndarray | None,
) -> Float64[np.ndarray, "d+1 c"]:
  """Solves one logistic regression along principal axes: sigmoid for c = 1, softmax for more.

  `basis` is the power (variance) along each axis and the axes, one per column.

  The unknowns are scaled by sqrt(curvature * power + l2), approximately the Hessian's diagonal, so
  that L-BFGS sees a nearly isotropic problem whatever the features' spread. The bias is the last
  row.
  """
  n, c = y.shape
  power, axes = basis
  y = y.astype(np.float64)
  share = np.clip(y.mean(0), 1e-3, 1 - 1e-3)
  curvature = float(np.mean(share * (1 - share)))
  stretch = np.sqrt(np.append(curvature * power + l2, curvature))[:, None]
  if start is None:
    start = np.zeros((len(stretch), c))
    start[-1] = np.log(share) if c > 1 else scipy.special.logit(share)

  def objective(u: np.ndarray) -> tuple[float, np.ndarray]:
    u = u / stretch
    logits = _matmul(x, _matmul(axes, u[:-1])) + u[-1]
    if c == 1:
      loss = np.logaddexp(0, logits) - y * logits
      residual = scipy.special.expit(logits) - y
    else:
      total = scipy.special.logsumexp(logits, axis=1, keepdims=True)
      loss = total - np.sum(y * logits, axis=1, keepdims=True)
      residual = np.exp(logits - total) - y
    slope = _transposed_matmul(axes, _transposed_matmul(x, residual) / n) + l2 * u[:-1]
    slope = np.concatenate([slope, residual.mean(0)[None]])
    return float(loss.sum() / n + l2 / 2 * np.sum(u[:-1] ** 2)), slope / stretch

  return _minimize(objective, start * stretch, tolerance) / stretch


def _minimize(
  objective: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray, tolerance: float
) -> np.ndarray:
  """The minimum of a smooth convex function whose Hessian is near the identity, by L-BFGS.

  Args:
    objective: x -> value, gradient of x's shape.
    start: initial x.
    tolerance: stop when no component of the gradient exceeds this.
  """

  def flat(x: np.ndarray) -> tuple[float, np.ndarray]:
    value, slope = objective(x.reshape(start.shape))
    return value, slope.ravel()

  # Only the gradient ends it: near the optimum the value's last digits are noise.
  options = {"gtol": tolerance, "ftol": 0.0, "maxcor": 20, "maxiter": 500, "maxls": 40}
  result = scipy.optimize.minimize(
    flat, start.ravel(), jac=True, method="L-BFGS-B", options=options
  )
  solution: np.ndarray = result.x
  return solution.reshape(start.shape)


# BLAS spreads even products as small as these over all cores and waits for them, which on a busy
# machine costs fifty times the product itself. einsum stays on one core.
def _matmul(x: np.ndarray, u: np.ndarray) -> np.ndarray:
  return np.stack([np.einsum("nd,d->n", x, column) for column in np.ascontiguousarray(u.T)], 1)


def _transposed_matmul(x: np.ndarray, v: np.ndarray) -> np.ndarray:
  return np.stack([np.einsum("nd,n->d", x, column) for column in np.ascontiguousarray(v.T)], 1)
