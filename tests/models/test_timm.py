"""Encoders against timm's with the same weights; needs torch and timm.

timm computes in float64: in float32 its own rounding is larger than ours.
"""

import warnings

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import pytest
import torch_here

from cxrjax.methods.base import split_stats
from cxrjax.models import densenet, inception, resnet, vit
from cxrjax.models.module import param_count

with warnings.catch_warnings():
  warnings.simplefilter("ignore")  # whatever these packages say about others
  torch = pytest.importorskip("torch")
  torch_here.declare_operators()
  timm = pytest.importorskip("timm")

pytestmark = pytest.mark.full
RESNET = ["layer1", "layer2", "layer3", "layer4"]
DENSENET = [f"features.{name}" for name in ("denseblock1", "denseblock2", "denseblock3", "norm5")]
INCEPTION = ["Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"]
CASES = {
  **{f"resnet{d}": (resnet.Model(depth=d, channels=3), RESNET) for d in resnet.BLOCKS},
  **{f"densenet{d}": (densenet.Model(depth=d, channels=3), DENSENET) for d in densenet.BLOCKS},
  "inception_v3": (inception.Model(channels=3), INCEPTION),
}
TAPS = tuple(f"stage:{i}" for i in range(4))
DEEP = {"resnet101", "resnet152", "densenet169", "densenet201"}
DEEP_LAST = sorted(CASES, key=lambda name: name in DEEP)


def _named(name, tree):
  prefix = "features." if name.startswith("densenet") else ""
  return dict(made_up.torch_names(tree, prefix))


def _peer(name, params):
  """timm's network with these parameters, and what its stages give."""
  options = {"aux_logits": False} if name == "inception_v3" else {}
  net = timm.create_model(name, num_classes=0, **options)
  state = {k: torch.tensor(v) for k, v in _named(name, params).items()}
  missing, unknown = net.load_state_dict(state, strict=False)
  assert not unknown
  assert all(key.endswith("num_batches_tracked") for key in missing)
  found = {}
  for stage in CASES[name][1]:
    net.get_submodule(stage).register_forward_hook(
      lambda _, __, out, stage=stage: found.update({stage: out})
    )
  return net.double(), found


def _maps(x):
  return torch.tensor(np.asarray(x), dtype=torch.float64).permute(0, 3, 1, 2)


def _close(ours, theirs, tolerance, what):
  theirs = theirs.detach().numpy()
  np.testing.assert_allclose(
    ours, theirs, rtol=tolerance, atol=tolerance * max(1.0, np.abs(theirs).max()), err_msg=what
  )


def _compare(name, features, found, tolerance):
  for tap, stage in zip(TAPS, CASES[name][1], strict=True):
    _close(features.intermediates[tap], found[stage].permute(0, 2, 3, 1), tolerance, stage)


@pytest.mark.parametrize("name", DEEP_LAST)
@pytest.mark.parametrize("size", [(96, 96), (113, 90)])
def test_outputs(name, size):
  model, _ = CASES[name]
  params, x = made_up.of(model), made_up.images(2, *size, 3)
  net, found = _peer(name, params)
  assert param_count(split_stats(params)[0]) == sum(p.numel() for p in net.parameters())
  ours = jax.jit(lambda p, x: model.encode(p, x, intermediates=TAPS))(params, x)
  with torch.no_grad():
    pooled = net.eval()(_maps(x))
  _compare(name, ours, found, 1e-4)
  _close(ours.cls, pooled, 1e-4, "cls")
  assert ours.patches.shape == (2, np.prod(model.grid(size)), model.features)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121", "inception_v3"])
def test_training(name):
  """Outputs on batch statistics, the new running ones, and every gradient."""
  model, _ = CASES[name]
  size = 139 if name == "inception_v3" else 96  # 3 x 3 cells: few numbers round badly
  params, x = made_up.of(model), jnp.asarray(made_up.images(6, size, size, 3))
  weight = made_up.images(6, model.features)
  net, found = _peer(name, params)

  def loss(params):
    features = model.encode(params, x, intermediates=TAPS, train=True)
    return (features.cls * weight).mean(), features

  grads, ours = jax.jit(jax.grad(loss, has_aux=True))(jax.tree.map(jnp.asarray, params))
  pooled = net.train()(_maps(x))
  (pooled * torch.tensor(weight)).mean().backward()
  _compare(name, ours, found, 2e-4)
  _close(ours.cls, pooled, 2e-4, "cls")
  state = net.state_dict()
  for key, value in _named(name, ours.stats).items():
    _close(value, state[key], 1e-4, key)
  named = _named(name, split_stats(grads)[0])
  for key, parameter in net.named_parameters():
    # Where rounding moves a unit over ReLU's edge gradients change by a whole term: torch's own
    # in float32 are up to 0.04 from those in float64, too.
    theirs = parameter.grad.numpy()
    assert np.linalg.norm(named[key] - theirs) < 0.06 * np.linalg.norm(theirs), key


def _vit_names(params, patch_size, channels):
  """A ViT's arrays as timm calls and lays them out."""
  for name, array in made_up.torch_names(params):
    if name == "patch.weight":
      kernel = array.reshape(patch_size, patch_size, channels, -1)
      yield "patch_embed.proj.weight", kernel.transpose(3, 2, 0, 1)
    elif name in ("cls", "pos"):
      yield {"cls": "cls_token", "pos": "pos_embed"}[name], array[None]
    else:
      name = name.replace("patch.", "patch_embed.proj.")
      name = name + ".gamma" if name.endswith((".ls1", ".ls2")) else name
      yield name, array.T if name.endswith("weight") and array.ndim == 2 else array


@pytest.mark.parametrize("layer_scale", [0.0, 1e-5])
def test_vision_transformer(layer_scale):
  """All tokens, on the size that its positions are for."""
  model = vit.Model(
    variant="Ti", depth=3, patch_size=16, image_size=96, channels=3, layer_scale=layer_scale
  )
  params, x = made_up.of(model), made_up.images(2, 96, 96, 3)
  net = timm.create_model(
    "vit_tiny_patch16_224", num_classes=0, img_size=96, depth=3, init_values=layer_scale or None
  )
  state = {k: torch.tensor(np.ascontiguousarray(v)) for k, v in _vit_names(params, 16, 3)}
  net.load_state_dict(state)
  assert param_count(params) == sum(p.numel() for p in net.parameters())
  ours = jax.jit(lambda p, x: model.encode(p, x))(params, x)
  with torch.no_grad():
    theirs = net.double().eval().forward_features(_maps(x))
  _close(ours.cls, theirs[:, 0], 1e-4, "cls")
  _close(ours.patches, theirs[:, 1:], 1e-4, "patches")
