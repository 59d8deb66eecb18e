"""Operations of a step beside formulas for its matrix products."""

import itertools

import pytest
from small import REPOSITORY

from cxrjax.config.config_files import load_config
from cxrjax.training import step_flops

EXAMPLES = 48
# Of `:tiny`: images of 32 pixels in patches of 8, local crops of 16.
WIDTH, DEPTH, PATCH = 64, 3, 8


def count(name, options="", what=step_flops.training):
  return what(load_config(REPOSITORY / f"configs/{name}.py")(f"tiny,{options}").to_dict(), EXAMPLES)


def blocks(n, width, depth):
  """Forward FLOPs of transformer blocks on n tokens."""
  return depth * (24 * n * width**2 + 4 * n * n * width)


def vit(size=32, n_patches=None, patches=True):
  """Forward FLOPs of a vision transformer, on some of the patches of an image."""
  n_patches = n_patches or (size // PATCH) ** 2
  n, embed = 1 + n_patches, 2 * n_patches * PATCH**2 * WIDTH
  if patches:
    return embed + blocks(n, WIDTH, DEPTH)
  # The class token alone needs all keys and values of the last block, and one row of the rest.
  return embed + blocks(n, WIDTH, DEPTH - 1) + 4 * n * WIDTH**2 + 20 * WIDTH**2 + 4 * n * WIDTH


def mlp(*dims):
  """Forward FLOPs of linear layers on one row."""
  return 2 * sum(a * b for a, b in itertools.pairwise(dims))


def dino():
  head = mlp(64, 256, 256, 64, 32)
  large, small = (2 * (vit(size, patches=False) + head) for size in (32, 16))
  return large + 3 * (large + small)  # the teacher has no gradient, which costs two passes


def mae():
  visible = 4
  decoder = mlp(64, 16) * (1 + visible) + blocks(17, 16, 1) + 16 * mlp(16, PATCH**2)
  return 3 * (vit(n_patches=visible) + decoder)


def byol():
  forward, predictor = vit(patches=False) + mlp(64, 32, 16), mlp(16, 32, 16)
  return 2 * (4 * forward + 3 * predictor)


def gmml():
  return 3 * (vit() + 16 * mlp(64, 64, 64, PATCH**2))


@pytest.mark.parametrize(
  ("name", "formula"),
  [
    ("dino", dino),
    ("mae", mae),
    pytest.param("byol", byol, marks=pytest.mark.full),
    pytest.param("gmml", gmml, marks=pytest.mark.full),
  ],
)
def test_products_are_those_of_the_formula(name, formula):
  """But for metrics and similarities, and the gradient of the pixels, which nobody needs."""
  assert count(name) == pytest.approx(formula(), rel=0.05)


def configs():
  """Every config that trains a method, and MoCo's other version."""
  for path in sorted((REPOSITORY / "configs").glob("*.py")):
    if load_config(path)("tiny").get("task") == "cxrjax.tasks.train":
      for options in ("", "method.version=2") if path.stem == "moco" else ("",):
        quick = path.stem == "segment"
        yield pytest.param(path.stem, options, marks=() if quick else pytest.mark.full)


@pytest.mark.parametrize(("name", "options"), list(configs()))
def test_a_gradient_costs_at_most_two_more_passes(name, options):
  forward = count(name, options, step_flops.forward)
  assert 1.9 * forward < count(name, options) <= 3.0 * forward
