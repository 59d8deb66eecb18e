"""Momentum contrast, versions 2 and 3: match a query to its image's key among other images' keys.

Keys come from a moving average of the network that makes the queries. Version 2 contrasts with a
queue of earlier keys, version 3 with the keys of the batch, both ways, through a predictor.

References:
  He et al., Momentum Contrast for Unsupervised Visual Representation Learning, 2019
  (arXiv 1911.05722).
  Chen et al., Improved Baselines with Momentum Contrastive Learning, 2020 (arXiv 2003.04297): v2.
  Chen et al., An Empirical Study of Training Self-Supervised Vision Transformers, 2021
  (arXiv 2104.02057): v3.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from cxrjax.core import durations as clocks
from cxrjax.core.errors import UserError
from cxrjax.losses import collapse, contrastive
from cxrjax.methods import base
from cxrjax.methods.base import (
  Batch,
  Metrics,
  Params,
  check_spread,
  diagnose_chance,
  ema,
  image_keys,
  join_stats,
  split_stats,
)
from cxrjax.models.heads import Projector


@dataclasses.dataclass(frozen=True)
class Method(base.Method):
  """MoCo; see `cxrjax.methods.base.Method` for what the functions do.

  The query network is evaluated, as in the papers.

  Version 3's negatives are the other images of the global batch (with gradient accumulation: of
  the microbatch). Version 2's are the queue: the keys of the last `queue` images of the global
  batches, in order, regardless of accumulation. Batch norm takes its statistics view by view over
  the global batch, in version 2 in groups of images.

  Attributes:
    encoder: network of queries and of keys.
    version: 2 or 3.
    hidden, dim, head_layers: the projector, `d -> hidden -> ... -> dim`. Papers: version 2 has
      2048, 128 and 2 layers; version 3 4096, 256 and 3 (ResNets: 2).
    batch_norm: in the heads; none in version 2. Version 3 also normalises the projector's output,
      without scale and bias.
    predictor_norm: version 3: the same for the predictor's output; the paper: for ViTs only.
    temperature: tau; 0.2, version 3 with ResNets 1.0.
    momentum: of the moving average, a schedule; version 2: 0.999, version 3: 0.99 to 1.
    queue: version 2: K, length of the queue; at least a batch.
    bn_groups: version 2: number of groups that images are normalised in, shuffled for the keys so
      that a query cannot recognise its key by the group's statistics (shuffled batch norm; the
      paper has a group on each of 8 GPUs). No effect without batch norm.
  """

  version: int = 3
  hidden: int = 4096
  dim: int = 256
  head_layers: int = 3
  batch_norm: bool = True
  predictor_norm: bool = True
  temperature: float = 0.2
  momentum: Any = dataclasses.field(default_factory=lambda: {"start": 0.99, "end": 1.0})
  queue: int = 65536
  bn_groups: int = 8

  def __post_init__(self) -> None:
    if self.version not in (2, 3):
      raise UserError(f"config.method.version={self.version} is unknown; valid: 2, 3")
    for name in ("hidden", "dim", "head_layers", "bn_groups"):
      if int(getattr(self, name)) < 1:
        raise UserError(f"config.method.{name}={getattr(self, name)} must be at least 1")
    if self.temperature <= 0:
      raise UserError(f"config.method.temperature={self.temperature} must be above 0")
    batch = self.clock.batch_size
    if self.version == 2 and self.queue < batch:
      raise UserError(
        f"config.method.queue={self.queue} is less than config.batch_size={batch}; raise it"
      )
    if self.version == 3 and batch < 2:
      raise UserError("config.batch_size=1 leaves MoCo v3 no negatives; use at least 2")
    _ = self.schedules

  @functools.cached_property
  def schedules(self) -> dict[str, clocks.Schedule]:
    key = "config.method.momentum"
    return {"momentum": clocks.from_config(self.momentum, self.clock, key)}

  @functools.cached_property
  def projector(self) -> Projector:
    no_final_norm = self.version == 2 or not self.batch_norm
    return Projector(
      in_dim=self.encoder.features,
      dims=(*[self.hidden] * (self.head_layers - 1), self.dim),
      batch_norm=self.batch_norm,
      final_norm="none" if no_final_norm else "batch_no_affine",
      bias=self.version == 2,
      dtype=self.encoder.dtype,
    )

  @functools.cached_property
  def predictor(self) -> Projector:
    has_final_norm = self.batch_norm and self.predictor_norm
    return Projector(
      in_dim=self.dim,
      dims=(self.hidden, self.dim),
      batch_norm=self.batch_norm,
      final_norm="batch_no_affine" if has_final_norm else "none",
      bias=False,
      dtype=self.encoder.dtype,
    )

  def init(
    self, key: Key[Array, ""], batch_spec: Mapping[str, jax.ShapeDtypeStruct]
  ) -> tuple[Params, Params]:
    views = batch_spec["global"].shape[0]
    if views != 2:
      raise UserError(f"MoCo compares two views: set config.views.global_crops=2, not {views}")
    keys = jax.random.split(key, 4)
    encoder, stats = split_stats(self.encoder.init(keys[0]))
    shared = {"encoder": encoder, "projector": self.projector.init(keys[1])}
    state = {"teacher": jax.tree.map(jnp.copy, shared), "stats": stats}
    if self.version == 3:
      return {**shared, "predictor": self.predictor.init(keys[2])}, state
    # The queue starts with random directions, as in the paper. `fresh` holds the newest keys until
    # the end of the step.
    batch_size = self.clock.batch_size
    directions = contrastive.unit(jax.random.normal(keys[3], (self.queue, self.dim)))
    state["queue"] = {"keys": directions, "images": jnp.full((self.queue,), -1.0)}
    state["fresh"] = {"keys": jnp.zeros((batch_size, self.dim)), "images": jnp.zeros((batch_size,))}
    state["oldest"] = jnp.zeros((), jnp.int32)
    return shared, state

  def loss(
    self, params: Params, state: Params, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
  ) -> tuple[Float[Array, ""], tuple[Params, Metrics]]:
    del step
    loss_of_version = self._version3 if self.version == 3 else self._version2
    loss, accuracy, first, new_state = loss_of_version(params, state, batch, key)
    first = jax.lax.stop_gradient(first)
    metrics = {
      "accuracy": accuracy,
      "feature_std": collapse.spread(first),
      "effective_rank": collapse.participation_ratio(first),
    }
    return loss, ({**state, **new_state}, metrics)

  def _version3(self, params: Params, state: Params, batch: Batch, key: Key[Array, ""]) -> Any:
    """Returns loss, accuracy, features of the first view and updates of `state`."""
    views = tuple(batch["global"])
    keys = tuple(image_keys(key, batch["position"], 1, v) for v in range(2))

    def project(weights: Params, keys: Any) -> tuple[Any, list[Array]]:
      features = self.encoder.encode(
        join_stats(weights["encoder"], state["stats"]), views, keys=keys, patches=False, train=True
      )
      return features, [self.projector.apply(weights["projector"], f.cls) for f in features]

    features, projections = project(params, keys)
    queries = [self.predictor.apply(params["predictor"], x) for x in projections]
    _, key_projections = project(state["teacher"], None)
    losses, hits = zip(
      *(
        contrastive.info_nce(q, k, self.temperature)
        for q, k in zip(queries, reversed(key_projections), strict=True)
      ),
      strict=True,
    )
    # The factor 2 tau makes the gradient's size independent of tau (section 3).
    loss = 2 * self.temperature * sum(losses)
    return loss, sum(hits) / 2, features[0].cls, {"stats": features[-1].stats or {}}

  def _version2(self, params: Params, state: Params, batch: Batch, key: Key[Array, ""]) -> Any:
    """Returns the same as `_version3`; the first view is the query, the second the key."""
    first, second = batch["global"]
    rows = first.shape[0]
    no_batch_norm = not (state["stats"] or self.batch_norm)
    groups = 1 if no_batch_norm else self.bn_groups
    if rows % groups:
      raise UserError(
        f"config.method.bn_groups={groups} does not divide a (micro)batch of {rows} images; "
        "change it or config.batch_size"
      )

    def project(weights: Params, x: Any, keys: Any) -> Any:
      features = self.encoder.encode(
        join_stats(weights["encoder"], state["stats"]), x, keys=keys, patches=False, train=True
      )
      return self.projector.apply(weights["projector"], features.cls), features.cls, features.stats

    def in_groups(weights: Params, x: Any, keys: Any = None) -> Any:
      if groups == 1:
        return project(weights, x, keys)
      parts = jax.tree.map(lambda a: a.reshape(groups, -1, *a.shape[1:]), (x, keys))
      z, cls, stats = jax.vmap(functools.partial(project, weights))(*parts)
      z, cls = (a.reshape(rows, a.shape[-1]) for a in (z, cls))
      return z, cls, jax.tree.map(lambda a: a.mean(0), stats)

    drop_key, order_key = jax.random.split(key)
    query, cls, stats = in_groups(params, first, image_keys(drop_key, batch["position"], 1))
    if groups == 1:
      positive, _, _ = in_groups(state["teacher"], second)
    else:
      order = jax.random.permutation(order_key, rows)
      positive, _, _ = in_groups(state["teacher"], second[order])
      positive = positive[jnp.argsort(order)]
    positive = contrastive.unit(jax.lax.stop_gradient(positive))

    queue, images = state["queue"], batch["index"].astype(jnp.float32)
    # An image's own earlier keys are not negatives. They are rare if the queue is much shorter than
    # the data, as in the papers; on a small set they are the nearest and would be pushed away.
    same_image = images[:, None] == queue["images"]
    loss, accuracy = contrastive.info_nce_queue(
      query, positive, queue["keys"], self.temperature, left_out=same_image
    )
    # `fresh` is averaged over microbatches: each fills its own rows, scaled by their number.
    share = self.clock.batch_size / rows
    fresh = {
      name: jnp.zeros_like(state["fresh"][name]).at[batch["position"]].set(share * value)
      for name, value in (("keys", positive), ("images", images))
    }
    return loss, accuracy, cls, {"stats": stats or {}, "fresh": fresh}

  def after_update(self, params: Params, state: Params, step: Int[Array, ""]) -> Params:
    shared = {name: params[name] for name in ("encoder", "projector")}
    state = {**state, "teacher": ema(state["teacher"], shared, self.schedules["momentum"](step))}
    if self.version == 3:
      return state
    oldest, rows = state["oldest"], self.clock.batch_size
    place = (oldest + jnp.arange(rows)) % self.queue
    queue = jax.tree.map(lambda q, f: q.at[place].set(f), state["queue"], state["fresh"])
    return {**state, "queue": queue, "oldest": (oldest + rows) % self.queue}

  def check_collapse(self, metrics: Mapping[str, float]) -> str | None:
    diagnosis = check_spread(
      metrics, "lower config.optimizer.lr, or raise config.method.momentum.start"
    )
    candidates = self.clock.batch_size if self.version == 3 else self.queue + 1
    return diagnosis or diagnose_chance(metrics, candidates)
