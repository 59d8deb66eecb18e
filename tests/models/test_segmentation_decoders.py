"""Decoders of masks: sizes, what they read of the encoder, plain code, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import full

from cxrjax.core.errors import UserError
from cxrjax.models import resnet, vit
from cxrjax.models.module import param_count
from cxrjax.models.segmentation_decoders import Decoder

VIT = vit.Model(variant="Nu", depth=4, patch_size=8, image_size=32, registers=2, drop_path=0.0)
CNN = resnet.Model(depth=18, width=4)


def shapes(encoder, kind, h, w, **options):
  """Logits' shape, by shapes alone."""
  decoder = Decoder(encoder, kind, **{"width": 4, **options})

  def whole(x):
    features = encoder.encode(
      encoder.init(jax.random.key(0)), x, intermediates=decoder.intermediates, train=True
    )
    return decoder.apply(decoder.init(jax.random.key(1)), x, features, train=True)

  logits, stats = jax.eval_shape(whole, jax.ShapeDtypeStruct((2, h, w, 1), jnp.float32))
  assert logits.dtype == jnp.float32
  return logits.shape, stats


@pytest.mark.parametrize(
  ("encoder", "kinds"),
  [
    pytest.param(VIT, ("linear", "upsample", "unetr", "auto"), id="vit"),
    full(vit.Model(variant="Ti", patch_size=16), ("unetr",), id="vit16"),
    pytest.param(CNN, ("linear", "upsample", "unet", "auto"), id="resnet"),
    full(resnet.Model(depth=18, width=4, small_stem=True), ("unet",), id="small_stem"),
  ],
)
def test_one_logit_for_each_pixel(encoder, kinds):
  for kind in kinds:
    found, stats = shapes(encoder, kind, 64, 96)
    assert found == (2, 64, 96, 1), kind
    assert bool(stats) == (kind != "linear")  # batch norm's


@pytest.mark.parametrize("kind", [full("linear"), full("upsample"), "unet"])
def test_sizes_that_do_not_halve(kind):
  assert shapes(CNN, kind, 72, 50)[0] == (2, 72, 50, 1)


def test_what_auto_is_and_which_maps_are_read():
  assert Decoder(VIT).chosen == "unetr" and Decoder(CNN).chosen == "unet"
  assert Decoder(VIT).intermediates == (
    "block:0",
    "block:1",
  )  # of 4: a third and two thirds of the way
  deep = vit.Model(variant="B", patch_size=16)
  assert Decoder(deep).intermediates == ("block:2", "block:5", "block:8")  # UNETR's z3, z6, z9
  assert Decoder(CNN).intermediates == ("stage:0", "stage:1", "stage:2", "stage:3")
  assert Decoder(VIT, "linear").intermediates == Decoder(CNN, "upsample").intermediates == ()


def test_linear_is_one_matrix_for_every_patch():
  decoder = Decoder(VIT, "linear")
  params, x = decoder.init(jax.random.key(0)), jnp.zeros((1, 16, 24, 1))
  features = made_up(VIT, decoder, 16, 24)
  found, stats = decoder.apply(params, x, features)
  assert stats == {} and param_count(params) == 64 * 64 + 1 + 2 * 64
  patch = np.asarray(features.patches[0, 4])  # the second row's second
  normal = (patch - patch.mean()) / np.sqrt(patch.var() + 1e-6)
  want = normal @ np.asarray(params["out"]["kernel"]) + np.asarray(params["bias"])
  np.testing.assert_allclose(found[0, 8:16, 8:16, 0].ravel(), want, rtol=1e-4, atol=1e-5)


def made_up(encoder, decoder, h, w):
  """Features of the right shapes with random numbers, without running the encoder."""
  found = jax.eval_shape(
    lambda x: encoder.encode(
      encoder.init(jax.random.key(0)), x, intermediates=decoder.intermediates
    ),
    jax.ShapeDtypeStruct((1, h, w, 1), jnp.float32),
  )
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), found)


@pytest.mark.parametrize(("encoder", "kind"), [(VIT, "unetr"), (CNN, "unet")])
def test_every_map_and_the_image_matter(encoder, kind):
  decoder = Decoder(encoder, kind, 2)
  x, features = jnp.ones((1, 32, 32, 1)), made_up(encoder, decoder, 32, 32)
  params = jax.jit(decoder.init)(jax.random.key(0))
  logits = jax.jit(lambda x, f: decoder.apply(params, x, f)[0])
  first = logits(x, features)

  def changes(x, f):
    return float(jnp.abs(logits(x, f) - first).max()) > 1e-6

  assert changes(x.at[0, 5, 7].add(2.0), features)
  for tap in decoder.intermediates:
    assert changes(
      x,
      features._replace(
        intermediates=features.intermediates | {tap: features.intermediates[tap] + 1}
      ),
    ), tap
  if kind == "unetr":
    assert changes(x, features._replace(patches=features.patches + 1))
    # The class token and registers are no part of the image.
    tap = decoder.intermediates[0]
    moved = features.intermediates[tap].at[:, :3].add(1.0)
    assert not changes(x, features._replace(intermediates=features.intermediates | {tap: moved}))


@pytest.mark.parametrize("kind", [full("linear"), full("upsample"), "unetr"])
def test_the_grid_is_not_turned(kind):
  """The patch at the top right changes the logits at the top right."""
  decoder = Decoder(VIT, kind, 2)
  features = made_up(VIT, decoder, 32, 64)
  params, x = jax.jit(decoder.init)(jax.random.key(0)), jnp.zeros((1, 32, 64, 1))
  moved = features._replace(patches=features.patches.at[:, 7].add(3.0))  # 4 rows of 8
  logits = jax.jit(lambda f: decoder.apply(params, x, f)[0][0, ..., 0])
  change = np.abs(logits(moved) - logits(features))
  assert change[:8, 56:].mean() > 4 * change.mean()


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (lambda: Decoder(VIT, "unte"), r"config\.method\.decoder='unte'.*did you mean 'unet'"),
    (lambda: Decoder(VIT, "unet"), r"decoder='unet' needs an encoder with stages.*choose 'unetr'"),
    (lambda: Decoder(CNN, "unetr"), r"decoder='unetr' needs an encoder with blocks.*choose 'unet'"),
    (lambda: Decoder(VIT, "upsample", 0), r"config\.method\.width=0 must be a whole number"),
    (
      lambda: Decoder(vit.Model(variant="Nu", patch_size=14, image_size=28), "unetr"),
      r"config\.model\.patch_size=14 must be a power of two",
    ),
  ],
)
def test_mistakes(make, words):
  with pytest.raises(UserError, match=words):
    make()
