"""Several networks of the same task as one: seeds, folds or different encoders."""

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

  Thresholds are the means of theirs, features lie side by side, maps are means of maps that are
  each relative to its maximum. What else is asked of it is the first network's.

  Attributes:
    members: of one kind, with the same classes, for images of the same size and window.

  References:
    Lakshminarayanan et al. 2017, arXiv 1612.01474, section 2.4.
  """

  members: tuple[Network, ...] = ()

  @classmethod
  def of(cls, members: Sequence[Network], key: str) -> Ensemble:
    """An ensemble.

    Args:
      members: two or more.
      key: the option that names them, for errors.

    Raises:
      UserError: they are of different kinds, classes or images.
    """
    first = members[0]
    for other in members[1:]:
      for what, of in _ALIKE.items():
        if of(first) != of(other):
          raise UserError(
            f"{key}: {first.run.workdir} and {other.run.workdir} are no ensemble: their {what} are "
            f"{of(first)} and {of(other)}; give runs of one task on the same images"
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
    """Thresholds of the whole; temperatures are the members' own."""
    if not all(member.judged for member in self.members):
      return {}
    cuts = [cut for member in self.members if (cut := member.thresholds) is not None]
    return {"members": [member.judged for member in self.members]} | (
      {"thresholds": np.mean(cuts, 0).tolist()} if len(cuts) == len(self.members) else {}
    )

  def describe(self) -> dict[str, Any]:
    found = super().describe() | {"members": [member.describe() for member in self.members]}
    return found | {"features": sum(member.run.encoder.features for member in self.members)}

  def outputs(self, params: dict[str, Any], x: Float[Array, "b s s c"]) -> dict[str, Array]:
    """Of a classifier `probabilities` [b m k], those of each member; else as a network's."""
    if self.kind == "encoder":
      return self.features(params, x)
    (name, *_), found = zip(
      *(
        next(iter(member.outputs(p, x).items()))
        for member, p in zip(self.members, params.values(), strict=True)
      ),
      strict=True,
    )
    return {name: jnp.stack(found, 1) if self.kind == "classifier" else sum(found) / len(found)}

  def features(self, params: dict[str, Any], x: Float[Array, "b s s c"]) -> dict[str, Array]:
    return {
      "features": jnp.concatenate(
        [
          member.features(p, x)["features"]
          for member, p in zip(self.members, params.values(), strict=True)
        ],
        -1,
      )
    }

  def calibrated(self, probabilities: Float32[np.ndarray, "n m k"]) -> Float64[np.ndarray, "n k"]:
    each = np.moveaxis(probabilities, 1, 0)
    return np.mean([member.calibrated(p) for member, p in zip(self.members, each, strict=True)], 0)

  def check_method(self, method: str, key: str = "method") -> None:
    for member in self.members:
      member.check_method(method, key)

  def maps(
    self,
    method: str,
    x: Float32[np.ndarray, "n s s 1"],
    target: int | Int[np.ndarray, "n"] | None = None,
  ) -> Float32[np.ndarray, "n s s"]:
    found = [np.maximum(member.maps(method, x, target), 0) for member in self.members]
    return np.mean([m / np.maximum(m.max((1, 2), keepdims=True), 1e-12) for m in found], 0)


_ALIKE = {
  "kinds": lambda network: network.kind,
  "classes": lambda network: ", ".join(network.classes) or "none",
  "images": lambda network: network.look(),
  "mean and std": lambda network: (network.mean, network.std),
}
