"""Files that other projects' own code wrote, and what their networks compute of the same images.

Each test needs the project it names and is skipped without. torch computes in float64.
"""

import functools
import importlib
import json
import warnings

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import pytest
import torch_here
from flax import linen
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from cxrjax.core.errors import UserError
from cxrjax.models import densenet, inception, resnet, vit, weights
from cxrjax.models.weights import export_timm

pytestmark = pytest.mark.full
IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
HALF = np.full(3, 0.5), np.full(3, 0.5)
SMALL = {"variant": "Ti", "depth": 2, "patch_size": 16, "image_size": 96}


@functools.cache
def need(name):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # whatever these packages say about others
    torch = pytest.importorskip("torch")
    torch_here.declare_operators()
    torch.manual_seed(0)
    pytest.importorskip(name.partition(".")[0])
    return importlib.import_module(name)


def gray(size):
  return np.random.default_rng(0).random((2, size, size, 1)).astype(np.float32)


def shaken(net):
  """Every parameter and statistic away from where networks start, so that none may be forgotten."""
  torch = need("torch")
  torch.manual_seed(0)
  with torch.no_grad():
    for name, value in [*net.named_parameters(), *net.named_buffers()]:
      if value.is_floating_point():
        noise = 0.1 * torch.randn(value.shape)
        if "running_var" in name:
          value.add_(noise.abs())
        elif value.ndim < 2 or value.shape[0] == 1:
          value.add_(noise)
  return net.eval()


def theirs(net, x, pixels, forward="forward"):
  torch = need("torch")
  images = ((x.astype(np.float64) - pixels[0]) / pixels[1]).transpose(0, 3, 1, 2)
  with torch.no_grad():
    return getattr(net.double(), forward)(torch.tensor(images))


def ours(model, params, x):
  """Class token and patches."""
  x = jnp.asarray((x - 0.5) / 0.25)
  found = jax.jit(lambda p, x: model.encode(p, x))(params, x)
  return np.concatenate([found.cls[:, None], found.patches], axis=1)


def close(found, reference):
  reference = np.asarray(reference)
  if reference.shape[1] > found.shape[1]:  # registers
    more = reference.shape[1] - found.shape[1]
    reference = np.delete(reference, np.arange(1, 1 + more), axis=1)
  np.testing.assert_allclose(found, reference, atol=1e-4 * max(1, np.abs(reference).max()), rtol=0)


@pytest.mark.parametrize(
  "name, options, peer",
  [
    ("vit_tiny_patch16_224", {}, {}),
    ("deit3_small_patch16_224", {"layer_scale": 1e-5}, {"embed_dim": 192, "num_heads": 3}),
    (
      "vit_small_patch14_reg4_dinov2",
      {"layer_scale": 1e-5, "registers": 4},
      {"embed_dim": 192, "num_heads": 3, "patch_size": 16},
    ),
  ],
)
def test_timm_vit(name, options, peer, tmp_path):
  """The second one's class token has no position, the last has registers besides."""
  timm, torch = need("timm"), need("torch")
  net = shaken(timm.create_model(name, img_size=96, depth=2, num_classes=3, **peer))
  torch.save({"state_dict": net.state_dict()}, tmp_path / "x.pth")
  model = vit.Model(**(SMALL | options))
  params, report = weights.load(tmp_path / "x.pth", model)
  assert (report.source, report.new) == ("timm", ())
  x = gray(96)
  close(ours(model, params, x), theirs(net, x, IMAGENET, "forward_features"))


@pytest.mark.parametrize("size, patch", [(64, 16), (160, 16), (160, 20)])
def test_timm_at_another_size(size, patch, tmp_path):
  """timm's own network of that size with the same arrays, resampled as it does for files."""
  timm, torch = need("timm"), need("torch")
  filter_fn = need("timm.models.vision_transformer").checkpoint_filter_fn
  options = {"depth": 2, "num_classes": 0}
  net = shaken(timm.create_model("vit_tiny_patch16_224", img_size=96, **options))
  torch.save(net.state_dict(), tmp_path / "x.pth")
  other = timm.create_model(
    "vit_tiny_patch16_224", img_size=size, patch_size=patch, **options
  ).eval()
  other.load_state_dict(filter_fn(net.state_dict(), other))
  model = vit.Model(**(SMALL | {"image_size": size, "patch_size": patch}))
  params, report = weights.load(tmp_path / "x.pth", model)
  assert report.resized == (("pos",) if patch == 16 else ("patch/kernel", "pos"))
  x = gray(size)
  close(ours(model, params, x), theirs(other, x, IMAGENET, "forward_features"))


@pytest.mark.parametrize("size", [64, 160])
def test_dino_at_another_size(size, tmp_path):
  """Its network is timm's, and its positions are resampled by a scale of (new + 0.1) / old."""
  timm, torch = need("timm"), need("torch")
  options = {"depth": 2, "num_classes": 0}
  net = shaken(timm.create_model("vit_tiny_patch16_224", img_size=96, **options))
  state = net.state_dict()
  torch.save({"teacher": {f"backbone.{n}": v for n, v in state.items()}}, tmp_path / "x.pth")
  grid = state["pos_embed"][:, 1:].reshape(1, 6, 6, 192).permute(0, 3, 1, 2)
  grid = torch.nn.functional.interpolate(
    grid, scale_factor=((size / 16 + 0.1) / 6,) * 2, mode="bicubic"
  )
  grid = grid.permute(0, 2, 3, 1).reshape(1, -1, 192)
  state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], grid], 1)
  other = timm.create_model("vit_tiny_patch16_224", img_size=size, **options).eval()
  other.load_state_dict(state)
  x = gray(size)
  reference = theirs(other, x, IMAGENET, "forward_features")
  model = vit.Model(**(SMALL | {"image_size": size}))
  close(ours(model, weights.load(tmp_path / "x.pth", model)[0], x), reference)
  model = vit.Model(**SMALL)  # of the file's own size, given other images
  close(ours(model, weights.load(tmp_path / "x.pth", model)[0], x), reference)


@pytest.mark.parametrize("library", ["timm", "torchvision.models"])
@pytest.mark.parametrize(
  "name, model",
  [
    ("resnet18", resnet.Model(depth=18)),
    ("resnet50", resnet.Model(depth=50)),
    ("densenet121", densenet.Model()),
    ("inception_v3", inception.Model()),
  ],
)
def test_cnn(name, model, library, tmp_path):
  """With pixels whose mean is our own, so that zeros beyond the border are the same gray."""
  peer, torch = need(library), need("torch")
  if library == "timm":
    net = peer.create_model(name)
  else:
    net = getattr(peer, name)(**({"init_weights": False} if name[0] == "i" else {}))
  net, pixels = shaken(net), (np.full(3, 0.5), np.array([0.2, 0.3, 0.4]))
  torch.save(net.state_dict(), tmp_path / "x.pth", _use_new_zipfile_serialization=library == "timm")
  (tmp_path / "config.json").write_text(
    json.dumps({"pretrained_cfg": {"mean": list(pixels[0]), "std": list(pixels[1])}})
  )
  params, report = weights.load(tmp_path / "x.pth", model)
  assert (report.source, report.new) == ("torchvision", ())
  x = gray(96)
  head = next(n for n in ("fc", "classifier") if hasattr(net, n))
  setattr(net, head, torch.nn.Identity())
  close(ours(model, params, x)[:, :1], theirs(net, x, pixels)[:, None])


@pytest.mark.parametrize(
  "name, options, model",
  [
    *(
      (name, {}, resnet.Model(depth=18))
      for name in (
        "seresnet18",
        "skresnet18",
        "resnet18d",
        "resnetblur18",
        "seresnext26d_32x4d",
        "resnetv2_18",
      )
    ),
    *(
      (name, {}, resnet.Model())
      for name in (
        "resnetaa50",
        "ecaresnet50t",
        "resnet50_gn",
        "resnext50_32x4d",
        "wide_resnet50_2",
      )
    ),
    ("densenetblur121d", {}, densenet.Model()),
    *(
      (name, {"img_size": 96, "embed_dim": 192, "depth": 2, "num_heads": 3}, vit.Model(**SMALL))
      for name in (
        "vit_base_patch16_rpn_224",
        "vit_small_patch16_rope_ape_224",
        "vit_relpos_small_patch16_224",
        "beit_base_patch16_224",
      )
    ),
  ],
)
def test_timms_other_networks_are_refused(name, options, model, tmp_path):
  """By their arrays, or where these are a plain network's by the name in timm's checkpoints."""
  timm, torch = need("timm"), need("torch")
  net = timm.create_model(name, num_classes=3, **options)
  torch.save({"arch": name, "state_dict": net.state_dict()}, tmp_path / "x.pth")
  with pytest.raises(UserError):
    weights.load(tmp_path / "x.pth", model)


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize(
  "kind, options",
  [
    ("ViT", {}),
    ("Dinov2", {"layer_scale": 1e-5, "mask_token": True}),
    ("Dinov2WithRegisters", {"layer_scale": 1e-5, "mask_token": True, "registers": 4}),
  ],
)
def test_transformers(kind, options, saved, tmp_path):
  """Files that it saves, and its `state_dict`, whose names are others since version 5."""
  peer, torch = need("transformers"), need("torch")
  size = {
    "hidden_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 96,
    "patch_size": 16,
  }
  size |= {"intermediate_size": 768} if kind == "ViT" else {}
  net = shaken(getattr(peer, f"{kind}Model")(getattr(peer, f"{kind}Config")(**size)))
  path = tmp_path / ("model.safetensors" if saved else "x.bin")
  if saved:
    net.save_pretrained(tmp_path)
  else:
    torch.save(net.state_dict(), path)
  model = vit.Model(**(SMALL | options))
  params, report = weights.load(path, model)
  assert (report.source, report.new) == ("hf-vit" if kind == "ViT" else "hf-dinov2", ())
  x = gray(96)
  found = theirs(net, x, HALF if kind == "ViT" else IMAGENET)
  close(ours(model, params, x), found.last_hidden_state)


class _Block(linen.Module):
  """In big_vision's names, out of Flax's own layers."""

  heads: int

  @linen.compact
  def __call__(self, x):
    y = linen.LayerNorm(name="LayerNorm_0")(x)
    x = x + linen.MultiHeadDotProductAttention(self.heads, name="MultiHeadDotProductAttention_0")(
      y, y
    )
    return x + _Mlp(name="MlpBlock_0")(linen.LayerNorm(name="LayerNorm_1")(x))


class _Mlp(linen.Module):
  @linen.compact
  def __call__(self, x):
    width = x.shape[-1]
    return linen.Dense(width, name="Dense_1")(linen.gelu(linen.Dense(4 * width, name="Dense_0")(x)))


class _Blocks(linen.Module):
  depth: int
  heads: int

  @linen.compact
  def __call__(self, x):
    for i in range(self.depth):
      x = _Block(self.heads, name=f"encoderblock_{i}")(x)
    return linen.LayerNorm(name="encoder_norm")(x)


class _BigVision(linen.Module):
  @linen.compact
  def __call__(self, x):
    x = linen.Conv(192, (16, 16), (16, 16), padding="VALID", name="embedding")(x)
    x = x.reshape(len(x), -1, 192)
    normal = linen.initializers.normal(0.1)
    x = x + self.param("pos_embedding", normal, (1, 36, 192))
    cls = jnp.broadcast_to(self.param("cls", normal, (1, 1, 192)), (len(x), 1, 192))
    return _Blocks(2, 3, name="Transformer")(jnp.concatenate([cls, x], axis=1))


def test_flax_layers_in_the_names_of_big_vision(tmp_path):
  """No copy of it is at hand: the layers are Flax's, names and order from its published code."""
  x = gray(96)
  images = jnp.asarray(np.repeat((x - 0.5) / 0.5, 3, -1))
  variables = _BigVision().init(jax.random.key(0), images)
  flat = flatten_dict(variables, sep="/")
  flat = {
    name: value + 0.1 * jax.random.normal(jax.random.key(i), value.shape) * (value.ndim < 3)
    for i, (name, value) in enumerate(flat.items())
  }
  np.savez(tmp_path / "x.npz", **flat)
  reference = _BigVision().apply(unflatten_dict(flat, sep="/"), images)
  model = vit.Model(**SMALL, gelu="tanh")
  params, report = weights.load(tmp_path / "x.npz", model)
  assert (report.source, report.new, report.left) == ("big_vision", (), ())
  close(ours(model, params, x), reference)


@pytest.mark.parametrize(
  "name, model",
  [
    ("vit", vit.Model(**SMALL)),
    (
      "rich",
      vit.Model(**SMALL, layer_scale=1e-5, registers=2, mask_token=True, gelu="tanh", pool="mean"),
    ),
    ("resnet18", resnet.Model(depth=18)),
    ("densenet121", densenet.Model()),
    ("inception_v3", inception.Model()),
  ],
)
def test_timm_takes_ours(name, model, tmp_path):
  """Strictly, from a file that the safetensors package reads; logits of a linear head."""
  timm = need("timm")
  load_file = need("safetensors.torch").load_file
  params = made_up.of(model)
  head = {"kernel": made_up.images(model.features, 3), "bias": made_up.images(3)}
  peer = export_timm.to_timm(model, params, head)
  save_file(peer.arrays, tmp_path / "x.safetensors", {"format": "pt"})
  net = eval(peer.command, {"timm": timm})
  net.load_state_dict(load_file(tmp_path / "x.safetensors"), strict=True)
  assert len(peer.arrays) == len(net.state_dict())
  x = gray(96)
  reference = np.asarray(theirs(net.eval(), x, (0.5, 0.25)))
  params = jax.tree.map(jnp.asarray, params)
  found = jax.jit(lambda p, x: model.encode(p, x).cls)(params, jnp.asarray((x - 0.5) / 0.25))
  np.testing.assert_allclose(
    found @ head["kernel"] + head["bias"], reference, atol=1e-4 * max(1, np.abs(reference).max())
  )
