"""One network's parameters in another of its family, and what does not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import layouts_of_others as layouts
import made_up
import numpy as np
import pytest
import torch_files
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import save_file

from cxrjax.core.errors import UserError
from cxrjax.models import resnet, vit, weights
from cxrjax.models.weights import export_timm
from cxrjax.models.weights.adapt import resize_patches

SMALL = {"variant": "Nu", "depth": 2, "patch_size": 8, "image_size": 32}


def small(**options):
  return vit.Model(**(SMALL | options))


def one(**options):
  """With one block, where more would only cost time."""
  return small(depth=1, **options)


def same(a, b, but=()):
  a, b = flatten_dict(a, sep="/"), flatten_dict(b, sep="/")
  for name in a.keys() & b.keys() - set(but):
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_the_same_network():
  for model in (small(registers=2, mask_token=True, layer_scale=1e-5), resnet.Model(depth=18)):
    params = made_up.of(model)
    found, report = weights.fit(params, model)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    same(found, params)
    assert (report.new, report.left, report.resized, report.source) == ((), (), (), "cxrjax")


def made(model):
  return jax.tree.map(jnp.asarray, made_up.of(model))


def cls(model, params, x):
  return jax.jit(lambda params, x: model.encode(params, x, patches=False).cls)(params, x)


def test_another_image_size():
  """Positions are resampled as the network itself does it for images of another size."""
  model, large = one(), one(image_size=48)
  params, x = made(model), jnp.asarray(made_up.images(1, 48, 48, 1))
  found, report = weights.fit(params, large)
  assert report.resized == ("pos",)
  np.testing.assert_allclose(cls(large, found, x), cls(model, params, x), atol=1e-5, rtol=1e-5)


def test_tokens_and_layer_scale_come_and_go():
  """Parts that the source lacks change nothing, but for registers, which are tokens."""
  rich = one(registers=2, mask_token=True, layer_scale=1e-5)
  x = jnp.asarray(made_up.images(1, 32, 32, 1))
  params = made(one())
  found, report = weights.fit(params, one(mask_token=True, layer_scale=1e-5))
  assert report.new == (*[f"blocks/0/ls{j}" for j in (1, 2)], "mask_token")
  scaled = one(mask_token=True, layer_scale=1e-5)
  np.testing.assert_allclose(cls(scaled, found, x), cls(one(), params, x), rtol=1e-6)
  # Back: factors become part of the layers before them; what has no place is left.
  params = made(scaled)
  found, report = weights.fit(params, one())
  assert (report.new, report.left) == ((), ("mask_token",))
  np.testing.assert_allclose(cls(one(), found, x), cls(scaled, params, x), rtol=1e-4, atol=1e-4)
  params = made(scaled)
  found, report = weights.fit(params, rich)
  assert report.new == ("registers",)
  assert found["registers"].shape == (2, 64)
  same(found, weights.fit(params, rich)[0])


@pytest.mark.parametrize("number", [0, 3])
def test_registers_are_not_dropped(number):
  """They are tokens that all others read."""
  params = made_up.of(one(registers=2))
  with pytest.raises(UserError, match=r"has 2 register tokens.*set config.model.registers=2"):
    weights.fit(params, one(registers=number))


def test_channels():
  gray, rgb = one(), one(channels=3)
  x = jnp.asarray(made_up.images(1, 32, 32, 1))
  params = made(rgb)
  found, _ = weights.fit(params, gray)
  same(found, params, but=["patch/kernel"])
  reference = cls(rgb, params, jnp.repeat(x, 3, -1))
  np.testing.assert_allclose(cls(gray, found, x), reference, rtol=1e-4, atol=1e-4)
  back, _ = weights.fit(found, rgb)
  np.testing.assert_allclose(cls(rgb, back, jnp.repeat(x, 3, -1)), reference, rtol=1e-4, atol=1e-4)
  kernel = made_up.of(resnet.Model(depth=18, width=8, channels=3))["conv1"]["kernel"]
  found, _ = weights.fit(
    made_up.of(resnet.Model(depth=18, width=8, channels=3)), resnet.Model(depth=18, width=8)
  )
  np.testing.assert_allclose(found["conv1"]["kernel"][:, :, 0], kernel.sum(2), rtol=1e-5)


@pytest.mark.parametrize("standardize", [False, True])
def test_other_channels_are_refused(standardize, tmp_path):
  message = r"is for images of 4 channels; networks for gray \(1\) or colour \(3\) are read"
  network = resnet.Model(depth=18, width=8, channels=4)
  with pytest.raises(UserError, match=message):
    weights.fit(
      made_up.of(network), dataclasses.replace(network, channels=1, standardize=standardize)
    )
  arrays = export_timm.to_timm(one(channels=4), made(one(channels=4))).arrays
  save_file(arrays, tmp_path / "four.safetensors")
  with pytest.raises(UserError, match=message):
    weights.load(tmp_path / "four.safetensors", one(standardize=standardize))


@pytest.mark.parametrize("size", [12, 16, 32])
def test_larger_patches_answer_alike(size):
  """The inner product of the resized kernel with a resized patch is that of the old ones."""
  kernel, patch = made_up.images(8, 8, 1, 5), made_up.images(8, 8)
  # PIL resamples as the reference: its bicubic has another constant, so only smooth patches agree.
  large = np.asarray(jax.image.resize(patch, (size, size), "cubic"))
  new = resize_patches(kernel, size)
  assert new.shape == (size, size, 1, 5)
  np.testing.assert_allclose(
    np.einsum("pq,pqcd->d", large, new), np.einsum("pq,pqcd->d", patch, kernel), rtol=1e-4
  )


def test_smaller_patches_answer_nearly_alike():
  """On radiographs' smooth patches, resampled by PIL, and far from what resampling would give."""
  ramp = np.add.outer(np.linspace(0, 1, 16), np.linspace(-1, 1, 16)).astype(np.float32)
  patch = ramp + 0.3 * np.sin(3 * ramp)
  tiny = np.asarray(Image.fromarray(patch).resize((8, 8), Image.Resampling.BICUBIC))
  kernel = made_up.images(16, 16, 1, 50)
  theirs = np.einsum("pq,pqcd->d", patch, kernel)
  ours = np.einsum("pq,pqcd->d", tiny, resize_patches(kernel, 8))
  assert np.linalg.norm(ours - theirs) < 0.15 * np.linalg.norm(theirs)
  image = jax.image.resize(kernel[:, :, 0], (8, 8, 50), "cubic")
  assert np.linalg.norm(np.einsum("pq,pqd->d", tiny, image) - theirs) > np.linalg.norm(theirs) / 2


def test_another_patch_size():
  model = small(patch_size=16, image_size=64)
  found, report = weights.fit(made_up.of(small()), model)
  assert report.resized == ("patch/kernel",)  # the same grid of four by four
  assert found["patch"]["kernel"].shape == (256, 64)
  assert "1 resized (patch/kernel)" in report.summary()


OTHERS = {
  "width": (small(width=128), r"of width 64, 2 blocks, config.model has width 128, 2 blocks; set"),
  "depth": (small(depth=3), r"set config.model.width=64, config.model.depth=2"),
  "family": (resnet.Model(depth=18), "holds a vision transformer, config.model is a ResNet"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_network(other):
  model, reason = OTHERS[other]
  with pytest.raises(UserError, match=reason) as error:
    weights.fit(made_up.of(small()), model, key="config.init.path='runs/x'")
  assert str(error.value).startswith("config.init.path='runs/x'")


def test_another_resnet():
  params = made_up.of(resnet.Model(depth=18, width=8))
  for model, reason in (
    (resnet.Model(depth=34, width=8), "lacks 'layer1/2/bn1/bias' and"),
    (resnet.Model(depth=18, width=16), r"shape \(8,\) at 'bn1/bias', config.model's is \(16,\)"),
    (resnet.Model(depth=18, width=8, small_stem=True), "at 'conv1/kernel'"),
    (small(), "holds a ResNet, config.model is a vision transformer"),
  ):
    with pytest.raises(UserError, match=reason):
      weights.fit(params, model)
  deeper = made_up.of(resnet.Model(depth=34, width=8))
  with pytest.raises(UserError, match="holds 'layer1/2/bn1/bias' and 79 more that the ResNet of"):
    weights.fit(deeper, resnet.Model(depth=18, width=8))


def test_a_name_for_the_published_sizes(tmp_path):
  state = layouts.timm(made_up.of(small(width=192, heads=3, depth=12)), 8, 1)
  with pytest.raises(UserError, match=r"set config.model.variant='Ti'$"):
    weights.load(torch_files.save(state, tmp_path / "x.pth"), vit.Model())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite(bad, tmp_path):
  state = layouts.timm(made_up.of(small()), 8, 1)
  state["head.weight"] = np.full((2, 64), np.nan, np.float32)  # not used: no matter
  weights.load(torch_files.save(state, tmp_path / "x.pth"), small())
  state["blocks.1.mlp.fc1.weight"][3, :2] = bad
  with pytest.raises(UserError, match=r"2 NaN or infinite numbers.*'blocks/1/mlp/fc1/kernel'"):
    weights.load(torch_files.save(state, tmp_path / "x.pth"), small())


def test_missing_and_unknown_arrays(tmp_path):
  state = layouts.timm(made_up.of(small()), 8, 1)
  for name in ("blocks.1.norm2.weight", "pos_embed"):
    less = {k: v for k, v in state.items() if k != name}
    with pytest.raises(UserError, match=r"lacks '(blocks/1/norm2/scale|pos)' and 0 more of"):
      weights.load(torch_files.save(less, tmp_path / "x.pth"), small())
  more = state | {"blocks.0.attn.q_norm.weight": np.ones(32, np.float32)}
  with pytest.raises(UserError, match=r"holds 'blocks.0.attn.q_norm.weight', which"):
    weights.load(torch_files.save(more, tmp_path / "x.pth"), small())
  more = state | {"rel_pos_bias.table": np.ones(32, np.float32)}
  with pytest.raises(UserError, match=r"holds 'rel_pos_bias.table', which"):
    weights.load(torch_files.save(more, tmp_path / "x.pth"), small())
  odd = state | {"pos_embed": state["pos_embed"][:, :14]}
  with pytest.raises(UserError, match="positions for 14 tokens, which are no square"):
    weights.load(torch_files.save(odd, tmp_path / "x.pth"), small())
  with pytest.raises(UserError, match=r"none of the known layouts \(its arrays: a, b, ...\)"):
    weights.load(
      torch_files.save({"a": np.ones(2, "f4"), "b": np.ones(2, "f4")}, tmp_path / "x.pth"), small()
    )


def test_report_is_plain():
  import json

  _, report = weights.fit(made_up.of(small()), small(image_size=64, mask_token=True))
  assert report.summary() == (
    "parameters (cxrjax): 30 parameters used; 1 resized (pos); 1 new (mask_token)"
  )
  assert json.loads(json.dumps(report.facts()))["new"] == ["mask_token"]
