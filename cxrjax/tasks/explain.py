"""Explains finished runs: maps over radiographs, how much of them is lung, runs side by side."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int64

from cxrjax.config.instantiate import freeze
from cxrjax.core.command import say
from cxrjax.core.errors import UserError, suggest
from cxrjax.data import open_source
from cxrjax.data.images import Images, even
from cxrjax.data.loading.decoded_cache import load_images
from cxrjax.evals import embedding
from cxrjax.explain import lung_overlap, maps, saliency_artifacts, sanity
from cxrjax.explain.maps import Head
from cxrjax.inference import networks, pseudo_masks
from cxrjax.metrics import saliency
from cxrjax.models.module import Params
from cxrjax.report.naming import model_name
from cxrjax.report.pages.run_page import save_table
from cxrjax.report.run_files import environment
from cxrjax.report.run_files import read as read_facts
from cxrjax.report.run_writer import FACTS, Writer, now
from cxrjax.report.sections import saliency as drawing
from cxrjax.studies import explanations_page as page
from cxrjax.studies.launcher import named as named_runs
from cxrjax.training.workdir import settle_config

DEFAULT = ("attention", "rollout", "gradcam", "gradcam++")
COMPARED = 64  # images whose maps are held against those of random weights
OF_TRAINING = ("train", "val", "test", "subset", "split_seed", "labelled")  # of an evaluator's data


@dataclasses.dataclass(frozen=True, eq=False)
class Explained:
  """A finished run, and the images it looks at.

  Attributes:
    name: in the comparison.
    network: restored.
    images: at the size that it sees.
    head: of its classes; None where it has none.
    classes: of the head.
    about: what the head is, in words.
  """

  name: str
  network: networks.Network
  images: Images
  head: Head | None
  classes: tuple[str, ...]
  about: str

  @property
  def params(self) -> Params:
    return self.network.params["encoder"]

  @property
  def encoder(self) -> Any:
    return self.network.run.encoder


def run(
  config: Mapping[str, Any],
  workdir: pathlib.Path,
  command: str = "",
  say: Callable[[str], None] = say,
) -> int:
  """Explains the runs of `config.runs`; see `configs/explain.py` for what is written.

  Raises:
    UserError: no such run, images, method or class.
  """
  loaded = {
    name: networks.load(path, "config.runs") for name, path in named_runs(config["runs"], 1).items()
  }
  for name, network in loaded.items():
    if network.kind == "segmenter":
      raise UserError(
        f"config.runs: {name} ({network.run.workdir}) draws masks, of which there is "
        "nothing to explain; give classifiers or pretrained encoders"
      )
  # Other runs may be explained in the same workdir: nothing of the last time is kept.
  settle_config(workdir, {"task": config["task"]})
  (workdir / FACTS).unlink(missing_ok=True)  # facts are merged
  notes: list[str] = []
  source, origin = _source(config, next(iter(loaded.values())))
  explained, masked = _explained(config, loaded, source, origin, notes)
  methods = _methods(config["methods"], explained, notes)
  for e in explained:
    _check_target(config["target"], e)
  began = now()
  seen = {e.name: {m: _look(e, m, config) for m in methods} for e in explained}
  found = _facts(explained, methods, seen, config) | {
    "data": {
      "name": source.info.name,
      "split": source.info.split,
      "of": len(source),
      "n": len(explained[0].images),
      "fingerprint": source.info.fingerprint,
      "patients": _people(explained[0].images.patients),
    },
    "masks": masked,
    "target": config["target"],
    "notes": notes,
  }
  with Writer(workdir) as writer:
    writer.facts(
      command=command or " ".join(sys.argv),
      started=began,
      finished=now(),
      status="finished",
      explain=found,
      **environment(),
    )
    writer.arrays("maps", **_shown(explained, methods, seen, config["shown"]))
  _files(workdir, explained, methods, seen, config["shown"])
  report = page.write(workdir)
  for note in notes:
    say(f"note: {note}")
  say(page.table(found))
  say(f"report    {report}")
  return 0


def _source(config: Mapping[str, Any], first: networks.Network) -> tuple[Any, dict[str, Any]]:
  """The images to look at, and where labelled training images for a probe are."""
  data = config["data"]
  if data["source"]:
    options, split = freeze(data["options"]), data["split"] or "test"
    return (
      open_source(data["source"], split=split, **options),
      {"name": data["source"], **options},
    )
  judged = [spec["data"] for spec in first.run.config["evals"].values() if spec.get("data")]
  judged.sort(key=lambda d: "test" not in d)  # beside the test split there may be a validation one
  if not judged:
    raise UserError(
      f"config.data.source is missing: {first.run.workdir} was judged by no images; "
      "give a source, like :data=folder:PATH"
    )
  own = judged[0]
  split = data["split"] or own.get("test") or own.get("split") or "test"
  options = {k: freeze(v) for k, v in own.items() if k not in (*OF_TRAINING, "name", "split")}
  options |= freeze(data["options"])
  return (
    open_source(freeze(own["name"]), split=split, **options),
    {"name": freeze(own["name"]), "train": own.get("train", "train"), **options},
  )


def _explained(
  config: Mapping[str, Any],
  loaded: Mapping[str, networks.Network],
  source: Any,
  origin: Mapping[str, Any],
  notes: list[str],
) -> tuple[list[Explained], dict[str, Any]]:
  """The runs with their images and heads; and where the lung masks are from."""
  rows, found = None, []
  masked: dict[str, Any] = {}
  for name, network in loaded.items():
    images, own = _decode(config, network, source)
    if rows is None:
      rows = _rows(images, config["images"])
      # All runs are scored by the masks of the first one's images.
      published = int(pseudo_masks.owned(own, rows).sum())
      predicted = len(lung_overlap.with_masks(images.take(rows))) - published
      masked = {
        "published": published,
        "predicted": predicted,
        "by": config["data"]["masks"] if predicted else "",
      }
    head, classes, about = _head(config, network, origin, notes, name)
    found.append(Explained(name, network, images.take(rows), head, classes, about))
  if not masked["published"] + masked["predicted"]:
    notes.append(
      f"{source.info.name} has no lung masks, so that nothing is said of lungs; give a "
      "finished segmentation run with masks=WORKDIR"
    )
  return found, masked


def _decode(
  config: Mapping[str, Any], network: networks.Network, source: Any
) -> tuple[Images, Images]:
  """Images as one network sees them: with predicted masks where asked for, and without."""
  like, cache = network.look(), config["data"]["cache_dir"] or None
  most = 4 * config["images"]  # some may have no mask
  rows = None if len(source) <= most else even(len(source), most)
  images = load_images(
    source,
    like.size,
    fit=like.fit,
    bits=like.bits,
    window=like.window,
    cache_dir=cache,
    indices=rows,
    progress=False,
  )
  if not config["data"]["masks"]:
    return images, images
  filled = pseudo_masks.fill(
    images, config["data"]["masks"], cache_dir=cache, progress=False, look=[like.fit, like.window]
  )
  return filled, images


def _rows(images: Images, most: int) -> Int64[np.ndarray, "n"]:
  """Which images are looked at: those with a mask, where any has one."""
  rows = lung_overlap.with_masks(images, most)
  if len(rows):
    return rows
  return even(len(images), most)


def _head(
  config: Mapping[str, Any],
  network: networks.Network,
  origin: Mapping[str, Any],
  notes: list[str],
  name: str,
) -> tuple[Head | None, tuple[str, ...], str]:
  """A classifier's own head, or a linear probe's; its classes; what it is."""
  if network.kind == "classifier":
    head = network.params["head"]
    return Head(head["kernel"], head["bias"]), network.classes, "its own classes"
  options = {k: v for k, v in origin.items() if k not in ("name", "train")}
  try:
    source = open_source(origin["name"], split=origin.get("train", "train"), **options)
  except UserError as error:
    notes.append(f"{name} has no classes, and no probe could be fitted ({error})")
    return None, (), ""
  like, most = network.look(), config["probe_images"]
  rows = even(len(source), most)
  images = load_images(
    source,
    like.size,
    fit=like.fit,
    bits=like.bits,
    window=like.window,
    cache_dir=config["data"]["cache_dir"] or None,
    indices=rows,
    progress=False,
  )

  def encode(params: Params, x: Any) -> Any:
    return network.run.encoder.encode(params, x).cls

  head = saliency_artifacts.probe(
    encode, network.params["encoder"], images, network.mean, network.std
  )
  if head is None:
    notes.append(f"{name} has no classes, and {source.info.name} no labels to fit a probe to")
    return None, (), ""
  return head, images.info.classes, f"a linear probe on {len(images)} training images"


def _methods(text: str, explained: Sequence[Explained], notes: list[str]) -> tuple[str, ...]:
  """Those asked for, or those of `DEFAULT` that all runs have."""
  asked = maps.named(text)
  for e in explained:
    for m in asked:
      maps.check(m, e.encoder, e.head is not None, "config.methods")
  if asked:
    return asked
  of = [maps.methods_for(e.encoder, e.head is not None) for e in explained]
  found = tuple(m for m in DEFAULT if all(m in each for each in of))
  if not found:
    raise UserError("config.methods: the runs have no method in common; explain them one by one")
  left = sorted({m for each in of for m in each if m in DEFAULT} - set(found))
  if left:
    notes.append(f"not all runs have {', '.join(left)}, which are left out")
  return found


def _check_target(target: str, e: Explained) -> None:
  if target and e.head is not None and target not in e.classes:
    raise UserError(f"config.target={target!r} is no class of {e.name}{suggest(target, e.classes)}")


def _look(e: Explained, method: str, config: Mapping[str, Any]) -> lung_overlap.Seen:
  options = {"tap": config["tap"]} if method in ("gradcam", "gradcam++") else {}
  target = e.classes.index(config["target"]) if config["target"] and e.classes else None
  return lung_overlap.look(
    method,
    e.encoder,
    e.params,
    e.images,
    head=e.head,
    target=target,
    mean=e.network.mean,
    std=e.network.std,
    **options,
  )


def _facts(
  explained: Sequence[Explained],
  methods: Sequence[str],
  seen: Mapping[str, Mapping[str, lung_overlap.Seen]],
  config: Mapping[str, Any],
) -> dict[str, Any]:
  """Scores, differences from the first run, and what random weights leave of the maps."""
  first, *others = explained
  patients, labels = first.images.patients, np.asarray(first.images.labels)
  classes = first.images.info.classes
  scores = {
    e.name: {
      m: lung_overlap.summary(seen[e.name][m].scores, patients, labels, classes) for m in methods
    }
    for e in explained
  }
  gains = {
    e.name: {
      m: {
        k: lung_overlap.interval(d)
        for k, d in lung_overlap.differences(
          seen[e.name][m].scores, seen[first.name][m].scores, patients
        ).items()
      }
      for m in methods
    }
    for e in others
  }
  return {
    "runs": [_about(e) for e in explained],
    "methods": list(methods),
    "scores": scores,
    "differences": gains,
    "reference": first.name,
    "random": {e.name: _random(e, seen[e.name], config) for e in explained},
  }


def _about(e: Explained) -> dict[str, Any]:
  run = e.network.run
  facts = read_facts(run.workdir)
  train = run.facts["data"]["train"]
  return {
    "name": e.name,
    "workdir": str(run.workdir),
    "method": e.network.method,
    "model": model_name(facts),
    "size": e.network.image_size,
    "head": e.about,
    "classes": list(e.classes),
    "train": train["name"],
    "split": train.get("split", ""),
    "n": train["n"],
    "step": run.step,
    "notes": train.get("notes", []),
  }


def _random(
  e: Explained, seen: Mapping[str, lung_overlap.Seen], config: Mapping[str, Any]
) -> dict[str, Any]:
  """Rank correlations of the maps with those of random weights, of the same classes."""
  n = min(COMPARED, len(e.images))
  x = lung_overlap.normalised(e.images.take(np.arange(n)), e.network.mean, e.network.std)
  key = jax.random.key(config["seed"])
  params = e.encoder.init(key)
  head = None if e.head is None else sanity.random_head(e.head, key)
  found = {}
  for method, of in seen.items():
    explains = method in maps.OF_CLASSES
    options = {"tap": config["tap"]} if method in ("gradcam", "gradcam++") else {}
    other = maps.explain(
      method, e.encoder, params, x, head=head, target=of.target[:n] if explains else None, **options
    )
    r = sanity.correlations(of.maps[:n], other)
    known = r[np.isfinite(r)]
    found[method] = {
      "value": float(known.mean()) if len(known) else None,
      "n": len(known),
      "flat": n - len(known),
    }
  return found


def _shown(
  explained: Sequence[Explained],
  methods: Sequence[str],
  seen: Mapping[str, Mapping[str, lung_overlap.Seen]],
  count: int,
) -> dict[str, np.ndarray]:
  """What the page draws: some images with their maps, and the mean maps of all images."""
  images = explained[0].images
  rows = saliency_artifacts.chosen(images, count)
  found: dict[str, np.ndarray] = {
    "image": images.gray(rows)[..., 0],
    "label": np.asarray(embedding.findings(np.asarray(images.labels)[rows], images.info.classes)),
  }
  found["mean_image"] = np.rint(images.gray(slice(None))[..., 0].mean(0)).astype(np.uint8)
  if images.masks is not None:
    found["mask"] = np.asarray(images.masks[rows])[..., 0] > 0
    found["mean_mask"] = _mean(np.asarray(images.masks)[..., 0].astype(np.float32), False)
  for i, e in enumerate(explained):
    for method in methods:
      own = seen[e.name][method]
      found[f"{method}/{i}"] = own.maps[rows]
      found[f"mean/{method}/{i}"] = _mean(own.maps, True)
      if e.classes and method in maps.OF_CLASSES:
        found[f"target/{method}/{i}"] = np.asarray([e.classes[t] for t in own.target[rows]])
  return found


def _mean(of: Float32[np.ndarray, "n h w"], each: bool) -> Float32[np.ndarray, "h w"]:
  """The mean over images; of maps, each counting the same."""
  of = np.maximum(of, 0)
  if each:
    total = of.sum((1, 2), keepdims=True)
    of = np.divide(of, total, out=np.zeros_like(of), where=total > 0)
  return of.mean(0, dtype=np.float32)


def _files(
  workdir: pathlib.Path,
  explained: Sequence[Explained],
  methods: Sequence[str],
  seen: Mapping[str, Mapping[str, lung_overlap.Seen]],
  count: int,
) -> None:
  """`maps/*.png`, `arrays/*.npz`, `scores.csv`."""
  save_table(workdir / "scores.csv", _rows_of_csv(explained, methods, seen))
  try:
    for folder in ("maps", "arrays"):
      (workdir / folder).mkdir(exist_ok=True)
      for old in (workdir / folder).iterdir():  # of another comparison
        old.unlink()
    for e in explained:
      rows = saliency_artifacts.chosen(e.images, count)
      gray = e.images.gray(rows)[..., 0]
      for method in methods:
        own = seen[e.name][method]
        name = f"{_file_name(e.name)}-{method.replace('++', 'pp')}"
        np.savez_compressed(
          workdir / "arrays" / f"{name}.npz",
          maps=own.maps,
          id=np.asarray(e.images.ids),
          target=own.target,
          classes=np.asarray(e.classes),
        )
        (scaled,) = drawing.scale(method, own.maps[rows])
        for i, heat in enumerate(scaled.maps):
          drawing.png(gray[i], heat, scaled).save(
            workdir / "maps" / f"{i + 1:02d}-{name}.png", optimize=True
          )
  except OSError as error:
    raise UserError(
      f"{workdir} cannot be written ({error.strerror or error}); free some space, or "
      "choose another folder with --workdir"
    ) from error


def _file_name(name: str) -> str:
  return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def _rows_of_csv(
  explained: Sequence[Explained],
  methods: Sequence[str],
  seen: Mapping[str, Mapping[str, lung_overlap.Seen]],
) -> Iterator[Sequence[Any]]:
  yield ("run", "method", "id", "label", "explained", *saliency.MEASURES, "undefined")
  for e in explained:
    labels = embedding.findings(np.asarray(e.images.labels), e.images.info.classes)
    for method in methods:
      own = seen[e.name][method]
      for i, image in enumerate(e.images.ids):
        values = [own.scores.values[m][i] for m in saliency.MEASURES]
        yield [
          e.name,
          method,
          image,
          labels[i],
          e.classes[own.target[i]] if own.target[i] >= 0 else "",
          *(f"{v:.6g}" if np.isfinite(v) else "" for v in values),
          own.scores.reasons[i],
        ]


def _people(patients: Sequence[str]) -> int | None:
  """How many patients there are; None where one is unknown."""
  return len(set(patients)) if all(patients) else None
