"""Every published layout gives the network that it was made of; nothing but NumPy made the files.

The reference is our own network with three channels, which other tests hold against timm's, on the
source's own normalisation of a gray image in all channels.
"""

import functools
import json
import re

import jax
import jax.numpy as jnp
import layouts_of_others as layouts
import made_up
import numpy as np
import pytest
import torch_files
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file
from small import full

from cxrjax.core.errors import UserError
from cxrjax.models import densenet, inception, resnet, vit, weights
from cxrjax.models.conv import conv2d

IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
HALF = np.full(3, 0.5), np.full(3, 0.5)
SMALL = {"variant": "Nu", "depth": 2, "patch_size": 8, "image_size": 32}


def small(**options):
  return vit.Model(**(SMALL | options))


def gray(size, seed=0):
  return np.random.default_rng(seed).random((2, size, size, 1)).astype(np.float32)


@functools.lru_cache(maxsize=32)
def encoder(model):
  return jax.jit(lambda params, x: model.encode(params, x))


def outputs(model, params, x):
  found = encoder(model)(params, jnp.asarray(x, jnp.float32))
  return np.concatenate([found.cls[:, None], found.patches], axis=1)


def agree(source, params, found, model, pixels=IMAGENET, size=32, tolerance=1e-4):
  """The loaded network on our pixels, and the source's on its own."""
  x = gray(size)
  theirs = outputs(source, params, (x - pixels[0]) / pixels[1])
  ours = outputs(model, found, (x - 0.5) / 0.25)
  np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max())


def load(state, tmp_path, model, **options):
  return weights.load(torch_files.save(state, tmp_path / "x.pth"), model, **options)


PLAIN = small(channels=3)
SCALED = small(channels=3, layer_scale=1e-5, mask_token=True, registers=4)
STATES = {
  "timm": lambda s: s,
  "dino": lambda s: {
    "student": layouts.with_prefix(s, "module.backbone.")
    | {"module.head.mlp.0.weight": np.ones((3, 3), np.float32)},
    "teacher": layouts.with_prefix(s, "backbone."),
    "epoch": 3,
  },
  "mae": lambda s: {
    "model": s
    | {
      "mask_token": np.ones((1, 1, 64), np.float32),
      "decoder_blocks.0.norm1.weight": np.ones(64, np.float32),
    }
  },
  "moco-v3": lambda s: {
    "state_dict": {
      **layouts.with_prefix({n: 0 * a for n, a in s.items()}, "module.momentum_encoder."),
      **layouts.with_prefix(s, "module.base_encoder."),
      "module.predictor.0.weight": np.ones((3, 3), np.float32),
      "module.base_encoder.head.0.weight": np.ones((3, 3), np.float32),
    }
  },
}


@pytest.mark.parametrize("source", STATES)
def test_torch_layouts(source, tmp_path):
  params = made_up.of(PLAIN)
  state = STATES[source](layouts.timm(params, 8, 3))
  if source == "dino":
    state["student"] = {name: a + 1 for name, a in state["student"].items()}
  found, report = load(state, tmp_path, small())
  agree(PLAIN, params, found, small())
  assert report.source == source
  assert len(report.used) == len(jax.tree.leaves(found))
  assert report.new == report.resized == ()
  left = {
    "timm": (),
    "dino": ("student.*",),
    "mae": ("model.decoder_blocks.0.norm1.weight", "model.mask_token"),
    "moco-v3": (
      "state_dict.module.base_encoder.head.0.weight",
      "state_dict.module.momentum_encoder.*",
      "state_dict.module.predictor.0.weight",
    ),
  }
  assert report.left == left[source]


@pytest.mark.parametrize("chunks", [full(False), True])
def test_dinov2(chunks, tmp_path):
  """Registers, mask token and layer scale; blocks in chunks, as training checkpoints have them."""
  params = made_up.of(SCALED)
  state = layouts.timm(params, 8, 3)
  state["register_tokens"], state["mask_token"] = state.pop("reg_token"), state["mask_token"][0]
  if chunks:
    state = {name.replace("blocks.", "blocks.1."): a for name, a in state.items()}
    state = {"teacher": layouts.with_prefix(state, "backbone.")}
  model = small(layer_scale=1e-5, mask_token=True, registers=4)
  found, report = load(state, tmp_path, model)
  agree(SCALED, params, found, model)
  np.testing.assert_array_equal(found["mask_token"], params["mask_token"])
  assert (report.source, report.new, report.left) == ("dinov2", (), ())


@pytest.mark.parametrize("current", [False, True])
@pytest.mark.parametrize("source", [PLAIN, SCALED], ids=["vit", "dinov2"])
def test_hugging_face(source, current, tmp_path):
  params = made_up.of(source)
  state = layouts.hugging_face(params, 8, 3, current=current)
  dinov2 = source is SCALED
  if not dinov2:
    state = layouts.with_prefix(state, "vit.") | {"classifier.bias": np.ones(2, np.float32)}
  save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
  model = small(layer_scale=1e-5, mask_token=True, registers=4) if dinov2 else small()
  found, report = weights.load(tmp_path / "model.safetensors", model)
  agree(source, params, found, model, IMAGENET if dinov2 else HALF)
  assert report.source == ("hf-dinov2" if dinov2 else "hf-vit")
  assert report.left == (() if dinov2 else ("classifier.bias",))


@pytest.mark.parametrize(
  "prefix, options",
  [
    ("params/", {}),
    ("params/img/", {"scan": True}),
    ("opt/target/", {"old": True}),
    ("", {"old": True}),
  ],
)
def test_big_vision(prefix, options, tmp_path):
  source = small(channels=3, gelu="tanh")
  params = made_up.of(source)
  state = layouts.with_prefix(layouts.big_vision(params, 8, 3, 2, **options), prefix)
  np.savez(tmp_path / "x.npz", **state, **{prefix + "head/kernel": np.ones((64, 5))})
  found, report = weights.load(tmp_path / "x.npz", small(gelu="tanh"))
  agree(source, params, found, small(gelu="tanh"), HALF)
  assert (report.source, report.left) == ("big_vision", (prefix + "head/kernel",))
  assert not report.notes
  _, report = weights.load(tmp_path / "x.npz", small())
  assert "config.model.gelu='tanh'" in report.summary()


def test_big_vision_without_positions_and_class_token(tmp_path):
  """Its plain ViT-S: sines and cosines that no file holds, and the mean of the patches."""
  source = small(channels=3, gelu="tanh")
  params = made_up.of(source)
  state = layouts.big_vision(params, 8, 3, 2)
  del state["cls"], state["pos_embedding"]
  np.savez(tmp_path / "x.npz", **state)
  found, report = weights.load(tmp_path / "x.npz", small(gelu="tanh", pool="mean"))
  assert report.new == ("cls",)
  assert "pool='mean'" in report.summary()
  rows, columns = np.divmod(np.arange(16), 4)
  for feature, column in (
    (0, np.sin(columns)),
    (16, np.cos(columns)),
    (32, np.sin(rows)),
    (15, np.sin(columns / 1e4)),
    (63, np.cos(rows / 1e4)),
  ):
    np.testing.assert_allclose(found["pos"][1:, feature], column, atol=1e-6)


RESAMPLED = {  # layouts whose code brings positions to another size each in its own way
  "timm": ("timm", lambda s: s),
  "dino": ("dino", lambda s: layouts.with_prefix(s, "backbone.")),
  "mae": (
    "torch",
    lambda s: (
      s | {"decoder_norm.bias": np.ones(1, "f4"), "decoder_blocks.0.norm1.bias": np.ones(1, "f4")}
    ),
  ),
  "dinov2": ("dino", lambda s: s | {"mask_token": np.ones((1, 64), "f4")}),
}


def resampled(found, params, interpolation, pixels=IMAGENET, **options):
  """A network that resamples as it is told, on images of another size, and what was loaded."""
  model, x = small(image_size=48, **options), gray(48)
  source = small(channels=3, interpolation=interpolation, **options)
  theirs = outputs(source, params, (x - pixels[0]) / pixels[1])
  np.testing.assert_allclose(
    outputs(model, found, (x - 0.5) / 0.25), theirs, atol=1e-4 * np.abs(theirs).max()
  )


@pytest.mark.parametrize("source", RESAMPLED)
def test_positions_for_another_size(source, tmp_path):
  interpolation, change = RESAMPLED[source]
  params = made_up.of(PLAIN)
  found, report = load(change(layouts.timm(params, 8, 3)), tmp_path, small(image_size=48))
  assert (report.source, report.resized) == (source, ("pos",))
  resampled(found, params, interpolation)


@pytest.mark.parametrize(
  "source, interpolation, options",
  [
    ("hf-vit", "torch", {}),
    ("big_vision", "big_vision", {"gelu": "tanh"}),
    ("hf-dinov2", "torch", {"layer_scale": 1e-5, "mask_token": True}),
    ("hf-dinov2", "timm", {"layer_scale": 1e-5, "mask_token": True, "registers": 4}),
  ],
)
def test_positions_of_other_layouts_for_another_size(source, interpolation, options, tmp_path):
  params = made_up.of(small(channels=3, **options))
  if source == "big_vision":
    file = tmp_path / "x.npz"
    np.savez(file, **layouts.big_vision(params, 8, 3, 2))
  else:
    file = tmp_path / "x.safetensors"
    state = layouts.hugging_face(params, 8, 3, current=True)
    if source == "hf-vit":
      state = layouts.with_prefix(state, "vit.")
    save_file(state, file, {"format": "pt"})
  found, report = weights.load(file, small(image_size=48, **options))
  assert (report.source, report.resized) == (source, ("pos",))
  resampled(found, params, interpolation, IMAGENET if "dinov2" in source else HALF, **options)


def test_a_backbone_of_dinos_is_known_by_its_name(tmp_path):
  params = made_up.of(PLAIN)
  path = torch_files.save(layouts.timm(params, 8, 3), tmp_path / "dino_deitsmall16_pretrain.pth")
  found, report = weights.load(path, small(image_size=48))
  assert report.source == "dino"
  resampled(found, params, "dino")


def test_moco_heads(tmp_path):
  """Its ViT-S has twelve heads, which no shape shows; with six the outputs would be others."""
  wide = {"variant": "S", "depth": 1, "patch_size": 8, "image_size": 16}
  source = vit.Model(**wide, heads=12, channels=3)
  state = STATES["moco-v3"](layouts.timm(made_up.of(source), 8, 3))
  found, _ = load(state, tmp_path, vit.Model(**wide, heads=12))
  agree(source, made_up.of(source), found, vit.Model(**wide, heads=12), size=16)
  with pytest.raises(UserError, match=r"1 blocks and 12 heads.*set .*config.model.heads=12"):
    load(state, tmp_path, vit.Model(**wide))


CNNS = {
  "resnet18": (resnet.Model, {"depth": 18, "width": 8}, "", "fc.", IMAGENET),
  "resnet50": (resnet.Model, {"depth": 50, "width": 8}, "module.", "fc.", IMAGENET),
  "densenet121": (densenet.Model, {"growth": 4}, "features.", "classifier.", IMAGENET),
  "inception": (inception.Model, {"width": 4}, "", "AuxLogits.conv0.conv.", HALF),
}
FIRST = {  # convolution, batch norm, stride, padding
  "resnet18": ("conv1", "bn1", 2, 3),
  "resnet50": ("conv1", "bn1", 2, 3),
  "densenet121": ("conv0", "norm0", 2, 3),
  "inception": ("Conv2d_1a_3x3/conv", "Conv2d_1a_3x3/bn", 2, 0),
}


def first_layer(name, params, x):
  """Convolution and batch norm of the images."""
  flat = flatten_dict(params, sep="/")
  kernel, norm, stride, padding = FIRST[name]
  epsilon = 1e-3 if name == "inception" else 1e-5
  images, weight = jnp.asarray(x, jnp.float32), jnp.asarray(flat[f"{kernel}/kernel"])
  y = conv2d(images, weight, stride, (padding, padding))
  mean, var, scale, bias = (
    flat[f"{norm}/{leaf}"] for leaf in ("running_mean", "running_var", "scale", "bias")
  )
  return np.asarray((y - mean) / np.sqrt(var + epsilon) * scale + bias)


@pytest.mark.parametrize(
  "name", [name if name.startswith("resnet") else full(name) for name in CNNS]
)
def test_torchvision(name, tmp_path):
  """The first layer, which is changed, by what it computes; the others as they are."""
  make, options, prefix, head, pixels = CNNS[name]
  source, model = make(channels=3, **options), make(**options)
  params = made_up.of(source)
  state = dict(made_up.torch_names(params, prefix))
  state |= {prefix + "bn1.num_batches_tracked": np.array(3), head + "weight": np.ones((2, 2), "f4")}
  # The first DenseNets' files say `norm.1` for `norm1`.
  state = {re.sub(r"(denselayer1\.(?:norm|conv))(\d)", r"\1.\2", n): a for n, a in state.items()}
  found, report = load(state, tmp_path, model)
  assert report.source == "torchvision"
  assert report.left == (head + "weight",)
  ours, theirs = flatten_dict(found, sep="/"), flatten_dict(params, sep="/")
  changed = {FIRST[name][0] + "/kernel", FIRST[name][1] + "/running_mean"}
  for path in theirs.keys() - changed:
    np.testing.assert_array_equal(ours[path], theirs[path], err_msg=path)
  x = gray(32)
  reference = first_layer(name, params, (x - pixels[0]) / pixels[1])
  apart = np.abs(first_layer(name, found, (x - 0.5) / 0.25) - reference).max((0, 3))
  # Zeros beyond the border are another gray than the source's: there, and only there, it differs.
  inside = apart if name == "inception" else apart[2:-2, 2:-2]
  assert inside.max() < 1e-4 * np.abs(reference).max()
  assert apart.max() < 0.2 * np.abs(reference).max()


def test_torchvision_whole(tmp_path):
  """With the source's own mean, zero is the same gray on both sides: nothing differs at all."""
  options = {"depth": 18, "width": 8}
  source, model = resnet.Model(channels=3, **options), resnet.Model(**options)
  params = made_up.of(source)
  mean, std = [0.5] * 3, [0.2, 0.3, 0.4]
  (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": mean, "std": std}}))
  found, report = load(dict(made_up.torch_names(params)), tmp_path, model)
  assert report.pixels == (tuple(mean), tuple(std))
  agree(source, params, found, model, (mean, std), size=64)


def test_pixels_that_a_neighbour_file_tells(tmp_path):
  """timm's config.json and transformers' preprocessor_config.json, as the hub lays them out."""
  params = made_up.of(PLAIN)
  state = layouts.timm(params, 8, 3)
  pixels = np.full(3, 0.53), np.full(3, 0.26)
  (tmp_path / "preprocessor_config.json").write_text(
    json.dumps({"image_mean": [0.53] * 3, "image_std": [0.26] * 3})
  )
  found, report = load(state, tmp_path, small())
  agree(PLAIN, params, found, small(), pixels)
  assert report.facts()["pixels"] == [[0.53] * 3, [0.26] * 3]


def test_other_pixels_here(tmp_path):
  params = made_up.of(PLAIN)
  found, _ = load(layouts.timm(params, 8, 3), tmp_path, small(), mean=0.3, std=2.0)
  x = gray(32)
  theirs = outputs(PLAIN, params, (x - IMAGENET[0]) / IMAGENET[1])
  np.testing.assert_allclose(
    outputs(small(), found, (x - 0.3) / 2.0), theirs, atol=1e-4 * np.abs(theirs).max()
  )


def test_standardised_images_are_left_alone(tmp_path):
  params = made_up.of(PLAIN)
  found, report = load(layouts.timm(params, 8, 3), tmp_path, small(standardize=True))
  kernel = params["patch"]["kernel"].reshape(8, 8, 3, 64).sum(2).reshape(64, 64)
  np.testing.assert_allclose(found["patch"]["kernel"], kernel, atol=1e-5)
  np.testing.assert_array_equal(found["patch"]["bias"], params["patch"]["bias"])
  assert report.pixels is None


def test_half_precision_is_widened(tmp_path):
  params = made_up.of(PLAIN)
  state = {n: a.astype(np.float16) for n, a in layouts.timm(params, 8, 3).items()}
  found, _ = load(state, tmp_path, small())
  assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}
  agree(PLAIN, params, found, small(), tolerance=5e-3)


def test_distilled(tmp_path):
  """DeiT's distillation token is a register with a position."""
  source = small(channels=3, registers=1)
  params = made_up.of(source)
  state = layouts.timm(params, 8, 3)
  register, pos = state.pop("reg_token"), state["pos_embed"]
  extra = np.full((1, 1, 64), 0.3, np.float32)
  state["dist_token"] = register - extra
  state["pos_embed"] = np.concatenate([pos[:, :1], extra, pos[:, 1:]], axis=1)
  found, _ = load(state, tmp_path, small(registers=1))
  agree(source, params, found, small(registers=1))
  with pytest.raises(UserError, match=r"has 1 register tokens.*set config.model.registers=1"):
    load(state, tmp_path, small())


SIZE = {"depth": 18, "width": 8, "channels": 3}
VARIANTS = {  # what other ResNets' files hold beside, or instead
  "se": (
    lambda s: (
      s
      | {
        "layer1.0.se.fc1.weight": np.ones((4, 8, 1, 1), "f4"),
        "layer1.0.se.fc1.bias": np.ones(4, "f4"),
      }
    ),
    r"'layer1/0/se/fc1/bias' \(squeeze-and-excitation\) and 1 more",
  ),
  "blur": (
    lambda s: s | {"layer2.0.conv2.0.filt": np.ones((8, 1, 3, 3), "f4")},
    r"'layer2/0/conv2/0/filt' \(an anti-aliasing filter\) and 0 more",
  ),
  "deep stem": (
    lambda s: {
      n.replace("conv1.weight", "conv1.0.weight") if n[0] == "c" else n: a for n, a in s.items()
    },
    r"'conv1/0/kernel' \(a deep stem\)",
  ),
  "group norm": (
    lambda s: {n: a for n, a in s.items() if "running" not in n},
    "without running means: it normalises groups of channels",
  ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_resnets_are_not_read_as_plain_ones(variant, tmp_path):
  change, reason = VARIANTS[variant]
  state = change(dict(made_up.torch_names(made_up.of(resnet.Model(**SIZE)))))
  with pytest.raises(UserError, match=reason):
    load(state, tmp_path, resnet.Model(depth=18, width=8))


def test_networks_that_their_arrays_do_not_tell_apart(tmp_path):
  """timm's names, beside the file, in a checkpoint and of the file itself."""
  state = dict(made_up.torch_names(made_up.of(resnet.Model(**SIZE))))
  model = resnet.Model(depth=18, width=8)
  load({"state_dict": state, "arch": "resnet18"}, tmp_path, model)
  with pytest.raises(UserError, match="is 'resnetblur18', which blurs maps before its strides"):
    load({"state_dict": state, "arch": "resnetblur18"}, tmp_path, model)
  with pytest.raises(UserError, match=r"is 'resnetaa50-4cf422b3.pth', which blurs"):
    weights.load(torch_files.save(state, tmp_path / "resnetaa50-4cf422b3.pth"), model)
  (tmp_path / "config.json").write_text(json.dumps({"architecture": "seresnetaa18"}))
  with pytest.raises(UserError, match="is 'seresnetaa18', which blurs"):
    load(state, tmp_path, model)


def test_heads_are_left(tmp_path):
  """Projections and prototypes that stand beside an encoder's arrays, as SwAV's file has them."""
  params = made_up.of(resnet.Model(**SIZE))
  state = dict(made_up.torch_names(params, "module."))
  heads = {f"module.{n}.weight": np.ones((2, 2), "f4") for n in ("projection_head.0", "prototypes")}
  found, report = load(state | heads, tmp_path, resnet.Model(depth=18, width=8))
  assert report.left == tuple(heads)
  np.testing.assert_array_equal(
    found["layer1"]["0"]["conv1"]["kernel"], params["layer1"]["0"]["conv1"]["kernel"]
  )
