"""The JAX peer of `bench_methods.py`: SimCLR and BYOL as `stable-pretraining` has them in Flax.

Started by `bench_methods.py --stable-python=...` with a JSON specification as its only argument;
answers one JSON line for every command line on its standard input. Its own ViT, heads and losses
with the sizes of ours, and the forward and backward pass of its own training step.
"""

from __future__ import annotations

import json
import sys
import time

import jax
import stable_pretraining
import stable_pretraining.jax as peer
from flax import nnx
from sides import serve

MODELS = {"Ti": "vit_tiny", "S": "vit_small", "B": "vit_base", "L": "vit_large"}


def simclr(backbone, rngs):
  return peer.SimCLR(
    backbone=backbone,
    embed_dim=backbone.embed_dim,
    rngs=rngs,
    projector_dims=(2048, 128),
    temperature=0.1,
  )


def byol(backbone, rngs):
  return peer.BYOL(
    backbone=backbone,
    embed_dim=backbone.embed_dim,
    rngs=rngs,
    projector_dims=(4096, 256),
    predictor_hidden=4096,
  )


METHODS = {"simclr": simclr, "byol": byol}


class Side:
  """One method's forward and backward pass, compiled."""

  def __init__(self, name, spec):
    rngs = nnx.Rngs(0)
    backbone = getattr(peer.backbone.vit, MODELS[spec["model"]])(
      rngs=rngs, img_size=spec["size"], patch_size=spec["patch_size"], in_channels=1
    )
    self.module = METHODS[name](backbone, rngs)
    shape = spec["batch"], spec["size"], spec["size"], 1
    self.batch = {"views": [{"image": jax.random.normal(jax.random.key(i), shape)} for i in (0, 1)]}

    @nnx.jit
    def gradient(module, batch):
      def loss(module):
        state, logs = module.compute(batch, "fit")
        return state["loss"], logs

      return nnx.value_and_grad(loss, has_aux=True)(module)

    self.gradient = gradient

  def __call__(self, steps):
    """Seconds a step: by the clock, of the CPU."""
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
      found = self.gradient(self.module, self.batch)
    jax.block_until_ready(jax.tree.leaves(found[1]))
    return {
      "seconds": (time.perf_counter() - start) / steps,
      "cpu_seconds": (time.process_time() - cpu) / steps,
    }


def main():
  spec = json.loads(sys.argv[1])
  sides = {}

  def answer(kind, name, steps=1):
    if kind == "make":
      sides[name] = Side(name, spec)
      sides[name](1)
      return {}
    return sides[name](steps)

  serve(
    {
      "versions": {"jax": jax.__version__, "stable-pretraining": stable_pretraining.__version__},
      "device": jax.devices()[0].device_kind,
    },
    answer,
  )


if __name__ == "__main__":
  main()
