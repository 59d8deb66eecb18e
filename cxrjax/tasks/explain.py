"""Explains finished runs: saliency maps, their overlap with the lungs, runs side by side."""

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
from cxrjax.data.images import Images, evenly_spaced
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
from cxrjax.studies.launcher import parse_runs as named_runs
from cxrjax.training.workdir import settle_config

DEFAULT = ("attention", "rollout", "gradcam", "gradcam++")
COMPARED = 64  # images whose maps are compared with those of random weights
TRAINING_KEYS = (
  "train",
  "val",
  "test",
  "subset",
  "split_seed",
  "labelled",
)  # keys of `evals.*.data`


@dataclasses.dataclass(frozen=True, eq=False)
class Explained:
  """A finished run and the images to explain.

  Attributes:
    name: of the run in the comparison.
    network: restored from the run.
    images: at the network's input size.
    head: classification head; None where the run has none.
    classes: of the head.
    about: description of the head, in words.
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
  """Explains the runs of `config.runs`; see `configs/explain.py` for the files written.

  Raises:
    UserError: a run, image source, method or class does not exist.
  """
  loaded = _load_networks(config["runs"])
  # Other runs may have been explained in this workdir: their results are discarded.
  settle_config(workdir, {"task": config["task"]})
  (workdir / FACTS).unlink(missing_ok=True)  # facts are merged
  notes: list[str] = []
  source, origin = _source(config, next(iter(loaded.values())))
  explained, mask_counts = _load_explained(config, loaded, source, origin, notes)
  methods = _select_methods(config["methods"], explained, notes)
  for e in explained:
    _check_target(config["target"], e)
  started = now()
  explanations = {e.name: {m: _explain(e, m, config) for m in methods} for e in explained}
  facts = _facts(explained, methods, explanations, config) | {
    "data": {
      "name": source.info.name,
      "split": source.info.split,
      "of": len(source),
      "n": len(explained[0].images),
      "fingerprint": source.info.fingerprint,
      "patients": _count_patients(explained[0].images.patients),
    },
    "masks": mask_counts,
    "target": config["target"],
    "notes": notes,
  }
  with Writer(workdir) as writer:
    writer.facts(
      command=command or " ".join(sys.argv),
      started=started,
      finished=now(),
      status="finished",
      explain=facts,
      **environment(),
    )
    writer.arrays("maps", **_page_arrays(explained, methods, explanations, config["shown"]))
  _write_files(workdir, explained, methods, explanations, config["shown"])
  report = page.write(workdir)
  for note in notes:
    say(f"note: {note}")
  say(page.table(facts))
  say(f"report    {report}")
  return 0


def _load_networks(runs: str) -> dict[str, networks.Network]:
  """The networks of `config.runs` by name, none of which may be a segmenter."""
  loaded = {name: networks.load(path, "config.runs") for name, path in named_runs(runs, 1).items()}
  for name, network in loaded.items():
    if network.kind == "segmenter":
      raise UserError(
        f"config.runs: {name} ({network.run.workdir}) draws masks, of which there is "
        "nothing to explain; give classifiers or pretrained encoders"
      )
  return loaded


def _source(config: Mapping[str, Any], first: networks.Network) -> tuple[Any, dict[str, Any]]:
  """Images to explain, and the source of labelled training images for a probe."""
  data = config["data"]
  if data["source"]:
    options, split = freeze(data["options"]), data["split"] or "test"
    return (
      open_source(data["source"], split=split, **options),
      {"name": data["source"], **options},
    )
  eval_data = [spec["data"] for spec in first.run.config["evals"].values() if spec.get("data")]
  eval_data.sort(key=lambda d: "test" not in d)  # test before validation splits
  if not eval_data:
    raise UserError(
      f"config.data.source is missing: {first.run.workdir} was judged by no images; "
      "give a source, like :data=folder:PATH"
    )
  dataset = eval_data[0]
  split = data["split"] or dataset.get("test") or dataset.get("split") or "test"
  options = {k: freeze(v) for k, v in dataset.items() if k not in (*TRAINING_KEYS, "name", "split")}
  options |= freeze(data["options"])
  return (
    open_source(freeze(dataset["name"]), split=split, **options),
    {"name": freeze(dataset["name"]), "train": dataset.get("train", "train"), **options},
  )


def _load_explained(
  config: Mapping[str, Any],
  loaded: Mapping[str, networks.Network],
  source: Any,
  origin: Mapping[str, Any],
  notes: list[str],
) -> tuple[list[Explained], dict[str, Any]]:
  """Loads the images and head of every run; also counts lung masks by origin."""
  rows, explained = None, []
  mask_counts: dict[str, Any] = {}
  for name, network in loaded.items():
    images, without_predicted = _decode(config, network, source)
    if rows is None:
      rows = _select_rows(images, config["images"])
      # All runs are scored with the masks of the first run's images.
      published = int(pseudo_masks.has_own_mask(without_predicted, rows).sum())
      predicted = len(lung_overlap.with_masks(images.take(rows))) - published
      mask_counts = {
        "published": published,
        "predicted": predicted,
        "by": config["data"]["masks"] if predicted else "",
      }
    head, classes, about = _head(config, network, origin, notes, name)
    explained.append(Explained(name, network, images.take(rows), head, classes, about))
  if not mask_counts["published"] + mask_counts["predicted"]:
    notes.append(
      f"{source.info.name} has no lung masks, so maps are not scored on lungs; give a "
      "finished segmentation run with masks=WORKDIR"
    )
  return explained, mask_counts


def _decode(
  config: Mapping[str, Any], network: networks.Network, source: Any
) -> tuple[Images, Images]:
  """Images decoded for one network, with predicted masks if configured, and without them."""
  decoding, cache = network.look(), config["data"]["cache_dir"] or None
  limit = 4 * config["images"]  # spare ones, as some may have no mask
  rows = None if len(source) <= limit else evenly_spaced(len(source), limit)
  images = load_images(
    source,
    decoding.size,
    fit=decoding.fit,
    bits=decoding.bits,
    window=decoding.window,
    cache_dir=cache,
    indices=rows,
    progress=False,
  )
  if not config["data"]["masks"]:
    return images, images
  filled = pseudo_masks.fill(
    images,
    config["data"]["masks"],
    cache_dir=cache,
    progress=False,
    look=[decoding.fit, decoding.window],
  )
  return filled, images


def _select_rows(images: Images, limit: int) -> Int64[np.ndarray, "n"]:
  """Rows of the images to explain: those with a mask, where any has one."""
  rows = lung_overlap.with_masks(images, limit)
  return rows if len(rows) else evenly_spaced(len(images), limit)


def _head(
  config: Mapping[str, Any],
  network: networks.Network,
  origin: Mapping[str, Any],
  notes: list[str],
  name: str,
) -> tuple[Head | None, tuple[str, ...], str]:
  """Head of a classifier or of a linear probe, its classes, and its description."""
  if network.kind == "classifier":
    head = network.params["head"]
    return Head(head["kernel"], head["bias"]), network.classes, "its own classes"
  options = {k: v for k, v in origin.items() if k not in ("name", "train")}
  try:
    source = open_source(origin["name"], split=origin.get("train", "train"), **options)
  except UserError as error:
    notes.append(f"{name} has no classes, and no probe could be fitted ({error})")
    return None, (), ""
  decoding, limit = network.look(), config["probe_images"]
  rows = evenly_spaced(len(source), limit)
  images = load_images(
    source,
    decoding.size,
    fit=decoding.fit,
    bits=decoding.bits,
    window=decoding.window,
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


def _select_methods(text: str, explained: Sequence[Explained], notes: list[str]) -> tuple[str, ...]:
  """Methods that were requested, or those of `DEFAULT` that all runs support."""
  requested = maps.parse_methods(text)
  for e in explained:
    for method in requested:
      maps.check(method, e.encoder, e.head is not None, "config.methods")
  if requested:
    return requested
  supported = [maps.methods_for(e.encoder, e.head is not None) for e in explained]
  common = tuple(method for method in DEFAULT if all(method in names for names in supported))
  if not common:
    raise UserError("config.methods: the runs have no method in common; explain them one by one")
  omitted = sorted(
    {method for names in supported for method in names if method in DEFAULT} - set(common)
  )
  if omitted:
    notes.append(f"not all runs have {', '.join(omitted)}, which are left out")
  return common


def _check_target(target: str, e: Explained) -> None:
  if target and e.head is not None and target not in e.classes:
    raise UserError(
      f"config.target={target!r} is not a class of {e.name}{suggest(target, e.classes)}"
    )


def _explain(run: Explained, method: str, config: Mapping[str, Any]) -> lung_overlap.Explanation:
  options = {"tap": config["tap"]} if method in ("gradcam", "gradcam++") else {}
  target = run.classes.index(config["target"]) if config["target"] and run.classes else None
  return lung_overlap.explain_and_score(
    method,
    run.encoder,
    run.params,
    run.images,
    head=run.head,
    target=target,
    mean=run.network.mean,
    std=run.network.std,
    **options,
  )


def _facts(
  explained: Sequence[Explained],
  methods: Sequence[str],
  explanations: Mapping[str, Mapping[str, lung_overlap.Explanation]],
  config: Mapping[str, Any],
) -> dict[str, Any]:
  """Scores, differences from the first run, and agreement with maps of random weights."""
  first, *others = explained
  patients, labels = first.images.patients, np.asarray(first.images.labels)
  classes = first.images.info.classes
  scores = {
    e.name: {
      m: lung_overlap.summary(explanations[e.name][m].scores, patients, labels, classes)
      for m in methods
    }
    for e in explained
  }
  gains = {
    e.name: {
      m: {
        k: lung_overlap.interval(d)
        for k, d in lung_overlap.differences(
          explanations[e.name][m].scores, explanations[first.name][m].scores, patients
        ).items()
      }
      for m in methods
    }
    for e in others
  }
  return {
    "runs": [_describe_run(e) for e in explained],
    "methods": list(methods),
    "scores": scores,
    "differences": gains,
    "reference": first.name,
    "random": {e.name: _random_agreement(e, explanations[e.name], config) for e in explained},
  }


def _describe_run(e: Explained) -> dict[str, Any]:
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


def _random_agreement(
  e: Explained, explanations: Mapping[str, lung_overlap.Explanation], config: Mapping[str, Any]
) -> dict[str, Any]:
  """Rank correlations of the maps with those of random weights, for the same classes."""
  n = min(COMPARED, len(e.images))
  x = lung_overlap.normalize(e.images.take(np.arange(n)), e.network.mean, e.network.std)
  key = jax.random.key(config["seed"])
  params = e.encoder.init(key)
  head = None if e.head is None else sanity.random_head(e.head, key)
  agreement = {}
  for method, explanation in explanations.items():
    is_class_map = method in maps.OF_CLASSES
    options = {"tap": config["tap"]} if method in ("gradcam", "gradcam++") else {}
    random_maps = maps.explain(
      method,
      e.encoder,
      params,
      x,
      head=head,
      target=explanation.target[:n] if is_class_map else None,
      **options,
    )
    r = sanity.correlations(explanation.maps[:n], random_maps)
    finite = r[np.isfinite(r)]
    agreement[method] = {
      "value": float(finite.mean()) if len(finite) else None,
      "n": len(finite),
      "flat": n - len(finite),
    }
  return agreement


def _page_arrays(
  explained: Sequence[Explained],
  methods: Sequence[str],
  explanations: Mapping[str, Mapping[str, lung_overlap.Explanation]],
  count: int,
) -> dict[str, np.ndarray]:
  """Arrays for the page: some images with their maps, and mean maps over all images."""
  images = explained[0].images
  rows = saliency_artifacts.example_rows(images, count)
  arrays: dict[str, np.ndarray] = {
    "image": images.gray(rows)[..., 0],
    "label": np.asarray(embedding.findings(np.asarray(images.labels)[rows], images.info.classes)),
  }
  arrays["mean_image"] = np.rint(images.gray(slice(None))[..., 0].mean(0)).astype(np.uint8)
  if images.masks is not None:
    arrays["mask"] = np.asarray(images.masks[rows])[..., 0] > 0
    arrays["mean_mask"] = _mean_map(np.asarray(images.masks)[..., 0].astype(np.float32), False)
  for i, e in enumerate(explained):
    for method in methods:
      explanation = explanations[e.name][method]
      arrays[f"{method}/{i}"] = explanation.maps[rows]
      arrays[f"mean/{method}/{i}"] = _mean_map(explanation.maps, True)
      if e.classes and method in maps.OF_CLASSES:
        arrays[f"target/{method}/{i}"] = np.asarray(
          [e.classes[t] for t in explanation.target[rows]]
        )
  return arrays


def _mean_map(
  images: Float32[np.ndarray, "n h w"], equal_weight: bool
) -> Float32[np.ndarray, "h w"]:
  """Mean over images; with `equal_weight`, each map is first scaled to sum 1."""
  images = np.maximum(images, 0)
  if equal_weight:
    total = images.sum((1, 2), keepdims=True)
    images = np.divide(images, total, out=np.zeros_like(images), where=total > 0)
  return images.mean(0, dtype=np.float32)


def _write_files(
  workdir: pathlib.Path,
  explained: Sequence[Explained],
  methods: Sequence[str],
  explanations: Mapping[str, Mapping[str, lung_overlap.Explanation]],
  count: int,
) -> None:
  """Writes `maps/*.png`, `arrays/*.npz` and `scores.csv`."""
  save_table(workdir / "scores.csv", _csv_rows(explained, methods, explanations))
  try:
    for folder in ("maps", "arrays"):
      (workdir / folder).mkdir(exist_ok=True)
      for path in (workdir / folder).iterdir():  # of an earlier comparison
        path.unlink()
    for e in explained:
      rows = saliency_artifacts.example_rows(e.images, count)
      gray = e.images.gray(rows)[..., 0]
      for method in methods:
        explanation = explanations[e.name][method]
        name = f"{_file_name(e.name)}-{method.replace('++', 'pp')}"
        np.savez_compressed(
          workdir / "arrays" / f"{name}.npz",
          maps=explanation.maps,
          id=np.asarray(e.images.ids),
          target=explanation.target,
          classes=np.asarray(e.classes),
        )
        (scaled,) = drawing.scale(method, explanation.maps[rows])
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


def _csv_rows(
  explained: Sequence[Explained],
  methods: Sequence[str],
  explanations: Mapping[str, Mapping[str, lung_overlap.Explanation]],
) -> Iterator[Sequence[Any]]:
  yield ("run", "method", "id", "label", "explained", *saliency.MEASURES, "undefined")
  for e in explained:
    labels = embedding.findings(np.asarray(e.images.labels), e.images.info.classes)
    for method in methods:
      explanation = explanations[e.name][method]
      for i, image in enumerate(e.images.ids):
        values = [explanation.scores.values[m][i] for m in saliency.MEASURES]
        yield [
          e.name,
          method,
          image,
          labels[i],
          e.classes[explanation.target[i]] if explanation.target[i] >= 0 else "",
          *(f"{v:.6g}" if np.isfinite(v) else "" for v in values),
          explanation.scores.reasons[i],
        ]


def _count_patients(patients: Sequence[str]) -> int | None:
  """Number of patients; None where one is unknown."""
  return len(set(patients)) if all(patients) else None
