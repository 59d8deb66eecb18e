"""Ensembles of networks for the same task: seeds, folds or different encoders."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Int

from cxrjax.core.errors import UserError
from cxrjax.inference.networks import Network


@dataclasses.dataclass(frozen=True, eq=False)
class Ensemble(Network):
  """Networks whose probabilities are averaged, each after its own temperature.

  Thresholds are averaged, features concatenated, and maps averaged, each relative to its maximum.
  All other properties are those of the first network.

  Attributes:
    members: networks of one kind, with the same classes and the same image size and window.

  References:
    Lakshminarayanan et al. 2017, arXiv 1612.01474, section 2.4.
  """

  @classmethod
  def of(cls, members: Sequence[Network], key: str) -> Ensemble:
    """Combines networks into an ensemble.

    Args:
      members: two or more.
      key: the option that names them, for errors.

    Raises:
      UserError: their kinds, classes or images differ.
    """
    first = members[0]
    for member in members[1:]:
      for aspect, value in _MUST_MATCH.items():
        if value(first) != value(member):
          raise UserError(
            f"{key}: {first.run.workdir} and {member.run.workdir} do not form an ensemble: their "
            f"{aspect} are {value(first)} and {value(member)}; give runs of one task on the same "
            "images"
          )
    return cls(first.run, first.image_size, tuple(members))

  @functools.cached_property
  def params(self) -> dict[str, Any]:
    return {str(i): member.params for i, member in enumerate(self.members)}

  @property
  def name(self) -> str:
    return f"{len(self.members)} runs, " + ", ".join(member.name for member in self.members)

  @functools.cached_property
  def fingerprint(self) -> str:
    return hashlib.sha256("".join(m.fingerprint for m in self.members).encode()).hexdigest()

  @functools.cached_property
  def judged(self) -> dict[str, Any]:
    """Mean thresholds, and the calibration facts of the members with their own temperatures."""
    if not all(member.judged for member in self.members):
      return {}
    thresholds = [member.thresholds for member in self.members if member.thresholds is not None]
    facts: dict[str, Any] = {"members": [member.judged for member in self.members]}
    if len(thresholds) == len(self.members):
      facts["thresholds"] = np.mean(thresholds, 0).tolist()
    return facts

  def describe(self) -> dict[str, Any]:
    description = super().describe() | {"members": [member.describe() for member in self.members]}
    return description | {"features": sum(member.run.encoder.features for member in self.members)}

  def outputs(self, params: dict[str, Any], x: Float[Array, "b s s c"]) -> dict[str, Array]:
    """As of a network; a classifier's `probabilities` [b m k] are those of each member."""
    if self.kind == "encoder":
      return self.features(params, x)
    (name, *_), outputs = zip(
      *(
        next(iter(member.outputs(p, x).items()))
        for member, p in zip(self.members, params.values(), strict=True)
      ),
      strict=True,
    )
    if self.kind == "classifier":
      return {name: jnp.stack(outputs, 1)}
    return {name: sum(outputs) / len(outputs)}

  def features(self, params: dict[str, Any], x: Float[Array, "b s s c"]) -> dict[str, Array]:
    features = [
      member.features(p, x)["features"]
      for member, p in zip(self.members, params.values(), strict=True)
    ]
    return {"features": jnp.concatenate(features, -1)}

  def calibrated(self, probabilities: Float32[np.ndarray, "n m k"]) -> Float64[np.ndarray, "n k"]:
    by_member = np.moveaxis(probabilities, 1, 0)
    calibrated = [member.calibrated(p) for member, p in zip(self.members, by_member, strict=True)]
    return np.mean(calibrated, 0)

  def check_method(self, method: str, key: str = "method") -> None:
    for member in self.members:
      member.check_method(method, key)

  def maps(
    self,
    method: str,
    x: Float32[np.ndarray, "n s s 1"],
    target: int | Int[np.ndarray, "n"] | None = None,
  ) -> Float32[np.ndarray, "n s s"]:
    nonnegative = [np.maximum(member.maps(method, x, target), 0) for member in self.members]
    return np.mean([m / np.maximum(m.max((1, 2), keepdims=True), 1e-12) for m in nonnegative], 0)


_MUST_MATCH = {
  "kinds": lambda network: network.kind,
  "classes": lambda network: ", ".join(network.classes) or "none",
  "images": lambda network: network.look(),
  "mean and std": lambda network: (network.mean, network.std),
}
