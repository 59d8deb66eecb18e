"""The training images of a run, opened and decoded as its config says, and facts about them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from cxrjax import data as sources
from cxrjax.config.instantiate import freeze
from cxrjax.core.errors import UserError
from cxrjax.data.base import Source
from cxrjax.data.images import Images
from cxrjax.data.loading.loader import Loader
from cxrjax.inference import pseudo_masks
from cxrjax.methods.base import Labels
from cxrjax.training.labels import absent_class_notes, labels_of


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingData:
  """The training images of a run.

  Attributes:
    config: `config.data`.
    source: of the images.
    loader: of the batches.
    published_masks: number of images with a lung mask of their own; None where masks are not used,
      or not known before they are read.
  """

  config: Mapping[str, Any]
  source: Source
  loader: Loader
  published_masks: int | None

  @functools.cached_property
  def table(self) -> Any:
    """Labels and identity of all images, as far as possible of those that could be decoded."""
    return self.loader.images.table if self.loader.images is not None else self.source.table

  @functools.cached_property
  def labels(self) -> Labels:
    return labels_of(self.table, self.loader.info)

  def describe(self, leakage: Sequence[str]) -> dict[str, Any]:
    """Facts for `run.json`; `leakage` are remarks on images shared with the evaluation."""
    info, labels, patients = self.loader.info, self.labels, set(self.table.patients)
    return {
      "name": info.name,
      "split": info.split,
      "n": self.loader.num_examples,
      "storage": self.loader.storage,
      "bits": self.loader.bits,
      "classes": list(info.classes),
      "exclusive": labels.exclusive,
      "class_counts": dict(zip(labels.classes, labels.positive, strict=True)),
      "class_known": dict(zip(labels.classes, labels.known, strict=True)),
      "patients": len(patients) if all(patients) else None,
      "fingerprint": info.fingerprint,
      "splits": dict(info.splits),
      "notes": [*info.notes, *self.loader.notes, *absent_class_notes(labels), *leakage],
      **self._describe_masks(),
      "skipped": [list(s) for s in (*info.skipped, *self.loader.skipped)],
      "size": self.config["size"],
      "fit": self.config["fit"],
    }

  def _describe_masks(self) -> dict[str, Any]:
    """Number of images by the origin of their lung mask."""
    if self.published_masks is None:
      return {}
    _, segmenter = pseudo_masks.parse_option(self.config["masks"])
    others = f"predicted by {segmenter}" if segmenter else "none"
    n_others = self.loader.num_examples - self.published_masks
    return {"lung_masks": {"published": self.published_masks, others: n_others}}


def load(config: Mapping[str, Any], recipe: Any, mesh: Mesh, progress: bool) -> TrainingData:
  """Opens the training images of a config.

  Args:
    config: of the run.
    recipe: the views, which must take lung masks where the config asks for them.
    mesh: devices to split the batches over.
    progress: show bars on stderr.

  Raises:
    UserError: a source that cannot be opened or decoded, or options that do not go together.
  """
  data = config["data"]
  uses_masks, segmenter = pseudo_masks.parse_option(data.get("masks"))
  if uses_masks and not recipe.takes_masks:
    raise UserError(
      f"config.views.name={config['views']['name']!r} takes no lung masks; set "
      "config.data.masks='', or choose 'cxrjax.views.multicrop'"
    )
  source = _open_source(data)
  decoding = {
    "size": data["size"],
    "fit": data["fit"],
    "cache_dir": data["cache_dir"] or None,
    "on_bad_image": data["on_bad_image"],
    "bits": data.get("bits", "auto"),
    "window": freeze(data.get("window", "auto")),
    "progress": progress,
  }
  images: Source | Images = source
  published_masks = None
  if segmenter:  # masks are predicted for all decoded images before the loader starts
    images = sources.load_images(source, **decoding)
    published_masks = pseudo_masks.count(images)
    images = pseudo_masks.fill(
      images,
      segmenter,
      cache_dir=decoding["cache_dir"],
      mesh=mesh,
      progress=progress,
      look=[decoding["fit"], decoding["window"]],
    )
  loader = Loader(
    images,
    batch_size=config["batch_size"],
    seed=config["seed"],
    mesh=mesh,
    storage=data["storage"],
    masks=uses_masks,
    repeat=data.get("repeat", False),
    **decoding,
  )
  if uses_masks and not segmenter and loader.images is not None:
    published_masks = pseudo_masks.count(loader.images)
  return TrainingData(data, source, loader, published_masks)


def _open_source(data: Mapping[str, Any]) -> Source:
  """The source that `config.data` names, reduced to its split, subset, fold and labels."""
  return sources.open_source(
    freeze(data["source"]),
    split=data["split"],
    subset=data.get("subset") or None,
    fold=data.get("fold") or None,
    split_seed=data.get("split_seed", 0),
    labelled=data.get("labelled") or None,
    labelled_share=data.get("labelled_share", 0.0),
    **freeze(data.get("options", {})),
  )
