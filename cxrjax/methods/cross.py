"""Cross: a student agrees with itself across two views and with its teacher on each of them.

The teacher is a moving average of the student. Where BYOL compares across views and networks in one
term, Cross has a term for each: the cross-view loss between the student's two views, and the
cross-model loss between student and teacher.

References:
  Li, Togo, Ogawa, Haseyama, Self-Supervised Learning for Gastritis Detection with Gastric X-ray
  Images, 2021 (arXiv 2104.02864).
  Li, Togo, Ogawa, Haseyama, COVID-19 Detection Based on Self-Supervised Transfer Learning Using
  Chest X-ray Images, 2022 (arXiv 2212.09276): the same on radiographs.
"""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Array, Float

from cxrjax.core.errors import UserError
from cxrjax.losses import cosine
from cxrjax.methods import byol
from cxrjax.methods.base import Metrics
from cxrjax.methods.byol import Vectors


@dataclasses.dataclass(frozen=True)
class Method(byol.Method):
  """Cross: BYOL's two networks with losses across views and across models.

  With predictions q and projections z of the student, projections k of the teacher, D = 2 - 2 cos:

      view_weight  (D(q_1, z_2) + D(q_2, z_1))  +  model_weight  (D(q_1, k_1) + D(q_2, k_2))

  where z and k are constants. The publications specify the two losses and D; the predictor on one
  side, the stop-gradient on z and the equal weights are this package's reading, which makes the
  cross-view term SimSiam's.

  Attributes:
    view_weight: of the cross-view loss.
    model_weight: of the cross-model loss.
  """

  view_weight: float = 1.0
  model_weight: float = 1.0

  def __post_init__(self) -> None:
    for name in ("view_weight", "model_weight"):
      if getattr(self, name) < 0:
        raise UserError(f"config.method.{name}={getattr(self, name)} must be 0 or above")
    if self.view_weight == 0:
      raise UserError(
        "config.method.view_weight=0 leaves nothing that ties the views together; raise it, or "
        "use config.method.name=cxrjax.methods.byol"
      )
    super().__post_init__()

  def objective(
    self, predictions: Vectors, projections: Vectors, targets: Vectors
  ) -> tuple[Float[Array, ""], Metrics]:
    first, second = predictions
    view_loss = cosine.distance(first, projections[1]) + cosine.distance(second, projections[0])
    model_loss = cosine.distance(first, targets[0]) + cosine.distance(second, targets[1])
    metrics = jax.lax.stop_gradient({"view_loss": view_loss, "model_loss": model_loss})
    return self.view_weight * view_loss + self.model_weight * model_loss, metrics
