"""The target of a program: derived from the mesh, never from the machine that traces it."""

from __future__ import annotations

import dataclasses

from jax.sharding import Mesh

from cxrjax.core.errors import UserError, suggest

DTYPES = ("auto", "bfloat16", "float32")
ATTENTION = ("auto", "cudnn", "pallas", "plain")


@dataclasses.dataclass(frozen=True)
class Target:
  """The devices that a program is compiled for.

  Attributes:
    platform: "cpu", "cuda", "rocm" or "tpu", as `jax.lax.platform_dependent` names them.
    capability: compute capability of an NVIDIA GPU; unknown ones count as recent.
    mesh: devices over which batches are split; None: one device.
  """

  platform: str = "cpu"
  capability: float = 9.0
  mesh: Mesh | None = None

  @classmethod
  def of(cls, mesh: Mesh) -> Target:
    """The devices of a mesh, which may be a mere description by a plugin."""
    device = mesh.devices.flat[0]
    platform = device.platform
    if platform == "gpu":
      platform = "rocm" if device.device_kind.startswith("AMD") else "cuda"
    return cls(platform, float(getattr(device, "compute_capability", None) or 9.0), mesh)

  def dtype(self, name: str, key: str = "config.model.dtype") -> str:
    """Resolves "auto" to bfloat16 on accelerators and float32 on CPU; other names stay.

    Raises:
      UserError: an unknown type.
    """
    _check(name, DTYPES, key)
    if name != "auto":
      return name
    return "float32" if self.platform == "cpu" else "bfloat16"

  def attention(self, name: str, dtype: str, key: str = "config.model.attention") -> str:
    """Resolves "auto" to the platform's fused kernel for this type, or "plain"; other names stay.

    Args:
      name: one of `ATTENTION`.
      dtype: type of the activations; the fused kernels take bfloat16.
      key: the config key, for errors.

    Raises:
      UserError: an unknown kernel.
    """
    _check(name, ATTENTION, key)
    if name != "auto":
      return name
    if dtype == "bfloat16" and self.platform == "cuda" and self.capability >= 8.0:
      return "cudnn"
    if dtype == "bfloat16" and self.platform == "tpu":
      return "pallas"
    return "plain"


def _check(name: str, valid: tuple[str, ...], key: str) -> None:
  if name not in valid:
    raise UserError(f"{key}={name!r} is not known{suggest(name, valid)}")


CPU = Target()
