"""What evaluations see: PIL's resize of the whole image, normalised."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from cxrjax.core.errors import UserError
from cxrjax.views import evaluation


def test_resized_and_normalised(drawn):
  recipe = evaluation.Recipe(size=56, mean=0.4, std=0.2)
  found = jax.jit(recipe)(jnp.asarray(drawn[..., None]))
  assert found.shape == (4, 56, 56, 1)
  bicubic = PIL.Image.Resampling.BICUBIC
  for image, view in zip(drawn, found, strict=True):
    wanted = np.asarray(PIL.Image.fromarray(image).resize((56, 56), bicubic)) / 255
    difference = np.abs(view[..., 0] * 0.2 + 0.4 - wanted) * 255
    assert difference.mean() < 0.5 and np.quantile(difference, 0.99) < 1.5


def test_at_their_own_size_images_are_kept(drawn):
  found = evaluation.Recipe(size=160, mean=0.0, std=1.0)(jnp.asarray(drawn[..., None]))
  np.testing.assert_allclose(found[..., 0], drawn / 255, atol=1e-6)


@pytest.mark.parametrize("field, value", [("size", 0), ("std", 0), ("mean", float("nan"))])
def test_a_wrong_field_is_named(field, value):
  with pytest.raises(UserError, match=rf"config\.views\.{field}={value!r} must be "):
    evaluation.Recipe(**{field: value})
