"""Region-guided masked image modelling: a masked autoencoder that mainly hides the lungs.

References:
  Li et al., RGMIM: Region-Guided Masked Image Modeling for Learning Meaningful Representations from
  X-Ray Images, 2022 (arXiv 2211.00313).
  He et al., Masked Autoencoders Are Scalable Vision Learners, 2021 (arXiv 2111.06377).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
from jaxtyping import Array, Bool, Key

from cxrjax.core.errors import UserError
from cxrjax.methods import mae
from cxrjax.methods.base import Batch, Params, flatten_views
from cxrjax.views import masking


@dataclasses.dataclass(frozen=True)
class Method(mae.Method):
  """RGMIM; options besides those of `cxrjax.methods.mae.Method`.

  Lung patches are those with at least `inside` of their area in the lungs. At most `lung_ratio` of
  them are hidden; the remainder of `mask_ratio` of all patches is hidden elsewhere. So only lung
  patches are hidden if `mask_ratio` is below the lungs' share of an image times `lung_ratio`, and
  masks are denser there if `lung_ratio` is above `mask_ratio`. Images without lungs are masked at
  random.

  The paper's own rule and ratios were not available; this rule does what it describes.

  Attributes:
    lung_ratio: largest share of the lung patches that is hidden.
    inside: smallest share of a lung patch that lies in the lungs.
  """

  lung_ratio: float = 0.9
  inside: float = 0.5

  def __post_init__(self) -> None:
    super().__post_init__()
    for name in ("lung_ratio", "inside"):
      if not 0 < getattr(self, name) <= 1:
        raise UserError(f"config.method.{name}={getattr(self, name)} must be above 0, at most 1")

  def init(
    self, key: Key[Array, ""], batch_spec: Mapping[str, jax.ShapeDtypeStruct]
  ) -> tuple[Params, Params]:
    if "global_mask" not in batch_spec:
      raise UserError(
        "RGMIM draws its masks inside the lungs; set config.data.masks='own' with a source that "
        "has lung masks, or to the workdir of a finished run of configs/segment.py"
      )
    return super().init(key, batch_spec)

  def mask(
    self, keys: Key[Array, "n"], batch: Batch, patches: int, count: int
  ) -> Bool[Array, "n p"]:
    lungs = masking.coverage(flatten_views(batch["global_mask"]), self.encoder.patch_size)
    return masking.guided(keys, lungs >= self.inside, count, self.lung_ratio)
