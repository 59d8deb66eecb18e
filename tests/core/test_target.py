"""What a target decides: types and kernels by platform, never by the machine that traces."""

import types
from unittest import mock

import jax
import pytest
from jax.sharding import Mesh

from cxrjax.core.errors import UserError
from cxrjax.core.target import CPU, Target
from cxrjax.models import vit
from cxrjax.training.sharding import make_mesh


def test_this_machines_mesh_is_a_cpu():
  mesh = make_mesh(1, jax.devices()[:1])
  assert Target.of(mesh) == Target("cpu", mesh=mesh)


@pytest.mark.parametrize(
  ("platform", "kind", "capability", "expected"),
  [
    ("gpu", "NVIDIA H200", "9.0", ("cuda", 9.0)),
    ("gpu", "Tesla T4", "7.5", ("cuda", 7.5)),
    ("gpu", "AMD Instinct MI300X", None, ("rocm", 9.0)),
    ("tpu", "TPU v5 lite", None, ("tpu", 9.0)),
  ],
)
def test_of_a_mesh_of_accelerators(platform, kind, capability, expected):
  device = types.SimpleNamespace(platform=platform, device_kind=kind, compute_capability=capability)
  mesh = mock.Mock(spec=Mesh, devices=types.SimpleNamespace(flat=[device]))
  found = Target.of(mesh)
  assert (found.platform, found.capability) == expected


@pytest.mark.parametrize(
  ("target", "dtype", "kernel"),
  [
    (CPU, "float32", "plain"),
    (Target("cuda"), "bfloat16", "cudnn"),
    (Target("cuda", 7.5), "bfloat16", "plain"),
    (Target("rocm"), "bfloat16", "plain"),
    (Target("tpu"), "bfloat16", "pallas"),
  ],
)
def test_types_and_kernels(target, dtype, kernel):
  encoder = vit.Model(variant="Nu", target=target)
  assert (encoder.dtype, encoder.attention) == (dtype, kernel)
  assert vit.Model(variant="Nu", dtype="float32", target=target).attention == "plain"
  assert vit.Model(variant="Nu", attention="plain", target=target).attention == "plain"


@pytest.mark.parametrize("wrong", [{"dtype": "float16"}, {"attention": "flsh"}])
def test_what_is_none_is_refused(wrong):
  ((key, value),) = wrong.items()
  with pytest.raises(UserError, match=rf"config\.model\.{key}='{value}' is not known"):
    vit.Model(variant="Nu", **wrong)
