"""LARS: layer-wise adaptive rate scaling with momentum, for large batches."""

from __future__ import annotations

from functools import partial

import jax
import optax


def transform(momentum: float = 0.9, trust: float = 1e-3) -> optax.GradientTransformation:
  """Directions of LARS: `v <- momentum v + r g`, with `r = trust |p| / |g|` for every tensor.

  Biases and the scales and biases of norms, that is one-dimensional parameters, keep `r = 1`, as
  does a tensor that is zero or whose gradient is. The learning rate multiplies `v` afterwards, as
  in BYOL's and MoCo v3's code; the paper has it inside `v`, which differs while the rate changes.
  Weight decay belongs in `g`, as with `config.optimizer.coupled_decay=True`; so `r` has the norm of
  gradient plus decay, as in SimCLR's and BYOL's code, where the paper adds two norms.

  Args:
    momentum: of the moving sum `v`.
    trust: eta, how far a tensor moves in one step, as a share of its norm.

  References:
    You et al., Large Batch Training of Convolutional Networks, 2017 (arXiv 1708.03888), equation 6
    and Algorithm 1. Exclusions: Grill et al. 2020 (arXiv 2006.07733), section 3.3.
  """
  matrices = partial(jax.tree.map, lambda p: p.ndim > 1)
  trust_ratio = optax.scale_by_trust_ratio(trust_coefficient=trust)
  return optax.chain(optax.masked(trust_ratio, matrices), optax.trace(momentum))
