"""Maps beside PyTorch's own gradients and attention, on timm's networks with the same weights.

Written with hooks and the papers' equations alone; needs torch and timm.
"""

import warnings

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import pytest
import torch_here

from cxrjax.explain import attention
from cxrjax.explain.maps import Head, explain
from cxrjax.models import resnet, vit

with warnings.catch_warnings():
  warnings.simplefilter("ignore")  # whatever these packages say about others
  torch = pytest.importorskip("torch")
  torch_here.declare_operators()
  timm = pytest.importorskip("timm")

pytestmark = pytest.mark.full
SIZE, CHANNELS = 96, 3
CLOSE = {"rtol": 1e-3, "atol": 1e-4}  # of maps whose largest value is 1
TARGET = np.array([2, 0], np.int32)


def scaled(maps):
  return np.asarray(maps) / np.abs(maps).max()


def close(ours, theirs):
  np.testing.assert_allclose(scaled(ours), scaled(theirs), **CLOSE)


def with_head(model):
  rng = np.random.default_rng(3)
  kernel = rng.standard_normal((model.features, 4)).astype(np.float32)
  return (
    made_up.of(model),
    made_up.images(2, SIZE, SIZE, CHANNELS),
    Head(jnp.asarray(kernel), jnp.zeros(4)),
  )


def torch_resnet(model, params):
  net = timm.create_model("resnet18", num_classes=0)
  net.load_state_dict({k: torch.tensor(v) for k, v in made_up.torch_names(params)}, strict=False)
  return net.double().eval()


def torch_vit(model, params):
  state = {}
  for name, array in made_up.torch_names(params):
    if name == "patch.weight":
      kernel = array.reshape(model.patch_size, model.patch_size, CHANNELS, -1)
      state["patch_embed.proj.weight"] = kernel.transpose(3, 2, 0, 1)
    elif name in ("cls", "pos"):
      state[{"cls": "cls_token", "pos": "pos_embed"}[name]] = array[None]
    else:
      name = name.replace("patch.", "patch_embed.proj.")
      state[name] = array.T if name.endswith("weight") and array.ndim == 2 else array
  net = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=SIZE, depth=model.blocks)
  net.load_state_dict({k: torch.tensor(np.ascontiguousarray(v)) for k, v in state.items()})
  for block in net.blocks:
    block.attn.fused_attn = False
  return net.double().eval()


def hooked(net, layer, x, head):
  """What a layer gives, and the gradient of each image's own score by it."""
  found = {}
  handle = layer.register_forward_hook(lambda _, __, out: found.update(out=out))
  images = torch.tensor(np.asarray(x), dtype=torch.float64).permute(0, 3, 1, 2)
  logits = net(images) @ torch.tensor(np.asarray(head.kernel), dtype=torch.float64)
  handle.remove()
  score = logits[torch.arange(2), torch.tensor(TARGET).long()].sum()
  (gradient,) = torch.autograd.grad(score, found["out"])
  return found["out"].detach().numpy(), gradient.numpy()


def weigh(maps, gradient, plus):
  """Grad-CAM's equations 1 and 2, Grad-CAM++'s 19, of maps [n d h w]."""
  if plus:
    below = 2 * gradient**2 + maps.sum((2, 3), keepdims=True) * gradient**3
    alpha = np.where(gradient != 0, gradient**2 / np.where(below == 0, 1, below), 0)
    weights = (alpha * np.maximum(gradient, 0)).sum((2, 3))
  else:
    weights = gradient.mean((2, 3))
  return np.maximum((weights[..., None, None] * maps).sum(1), 0)


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("stage", [3, 4])
def test_resnet(plus, stage):
  model = resnet.Model(depth=18, channels=CHANNELS)
  params, x, head = with_head(model)
  net = torch_resnet(model, params)
  maps, gradient = hooked(net, getattr(net, f"layer{stage}"), x, head)
  ours = explain(
    "gradcam++" if plus else "gradcam",
    model,
    params,
    x,
    head=head,
    target=TARGET,
    tap=f"stage:{stage - 1}",
  )
  close(ours, weigh(maps, gradient, plus))


@pytest.mark.parametrize("block", [-1, -2])
def test_vision_transformer(block):
  """At what attention reads."""
  model = vit.Model(variant="Ti", depth=3, patch_size=16, image_size=SIZE, channels=CHANNELS)
  params, x, head = with_head(model)
  net = torch_vit(model, params)
  tokens, gradient = hooked(net, net.blocks[block].norm1, x, head)
  maps, gradient = (t[:, 1:].transpose(0, 2, 1).reshape(2, -1, 6, 6) for t in (tokens, gradient))
  close(
    explain("gradcam", model, params, x, head=head, target=TARGET, tap=f"norm:{block}"),
    weigh(maps, gradient, False),
  )


@pytest.mark.parametrize("fusion", attention.FUSIONS)
def test_attention_and_rollout(fusion):
  model = vit.Model(variant="Ti", depth=3, patch_size=16, image_size=SIZE, channels=CHANNELS)
  params, x, _ = with_head(model)
  net, found = torch_vit(model, params), []
  for block in net.blocks:
    block.attn.attn_drop.register_forward_hook(lambda _, __, out: found.append(out))
  with torch.no_grad():
    net(torch.tensor(np.asarray(x), dtype=torch.float64).permute(0, 3, 1, 2))
  weights = [w.numpy() for w in found]  # [n heads t t] of every block
  ours = jax.jit(attention.heads, static_argnums=(0, 3))(model, params, jnp.asarray(x), 1)
  np.testing.assert_allclose(ours.reshape(2, 3, 36), weights[1][:, :, 0, 1:], **CLOSE)
  joint = np.eye(37)[None]
  for w in weights:
    mixed = getattr(w, fusion)(1) / 2 + np.eye(37) / 2
    joint = mixed / mixed.sum(-1, keepdims=True) @ joint
  close(explain("rollout", model, params, x, fusion=fusion).reshape(2, 36), joint[:, 0, 1:])


def test_occlusion():
  model = resnet.Model(depth=18, channels=CHANNELS)
  params, x, head = with_head(model)
  net, window = torch_resnet(model, params), 48
  kernel = torch.tensor(np.asarray(head.kernel), dtype=torch.float64)

  def score(images):
    images = torch.tensor(images, dtype=torch.float64).permute(0, 3, 1, 2)
    with torch.no_grad():
      return (net(images) @ kernel)[torch.arange(2), torch.tensor(TARGET).long()].numpy()

  x = np.asarray(x)
  expected = np.zeros((2, 2, 2))
  for i, j in np.ndindex(2, 2):
    hidden = x.copy()
    hidden[:, 48 * i : 48 * i + 48, 48 * j : 48 * j + 48] = x.mean((1, 2), keepdims=True)
    expected[:, i, j] = score(x) - score(hidden)
  close(
    explain("occlusion", model, params, x, head=head, target=TARGET, window=window, stride=window),
    expected,
  )
