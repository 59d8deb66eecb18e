"""What a run's features hold, for its page: neighbours, a map of images, colours of patches."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax.core import compile_effort
from cxrjax.data.images import Images, even
from cxrjax.data.splits.patient_splits import patient_keys
from cxrjax.evals import embedding, features, knn
from cxrjax.evals.eval_splits import Data
from cxrjax.evals.probe import example_rows
from cxrjax.evals.subgroups import ATTRIBUTES
from cxrjax.explain import lung_overlap
from cxrjax.report.run_writer import Writer
from cxrjax.training import sharding

TEST, TRAIN = 2000, 4000  # images at most, at even steps through a larger set
QUERIES, NEAR = 6, 5  # test images shown, and training images beside each
SIDE = 160  # pixels of a picture, at most


def write(run: Any, state: Any, writer: Writer) -> None:
  """Writes the arrays and the facts `features` of a run's encoder, by its first labelled images.

  Nothing where no evaluator has labelled training and test images, or where features are not
  finite. Pictures have labels beside them, no ids and no patients.

  Args:
    run: of `tasks.train`. Every process must call.
    state: whose encoder it is.
    writer: of the run.
  """
  name = next(
    (
      n
      for n, d in run.eval_data.items()
      if isinstance(d, Data) and {"train", "test"} <= set(d.rows)
    ),
    None,
  )
  if name is None:
    return
  began = time.perf_counter()
  evaluator, data = run.evaluators[name], run.eval_data[name]
  params = run.method.encoder_params(state["params"], state["extra"])
  batch = min(evaluator.batch, max(len(images) for images in data.images.values()))
  queries = example_rows(data, QUERIES)
  chosen = {
    "train": even(len(data.rows["train"][1]), TRAIN),
    "test": np.union1d(even(len(data.rows["test"][1]), TEST), queries),
  }
  images = {part: _take(data, part, rows) for part, rows in chosen.items()}
  x = {
    part: features.extract(
      run.encode, params, taken, batch=batch, mean=evaluator.mean, std=evaluator.std, mesh=run.mesh
    )
    for part, taken in images.items()
  }
  if not all(np.isfinite(v).all() for v in x.values()):
    return
  queries = np.searchsorted(chosen["test"], queries)
  arrays, facts = _described(images["train"], images["test"], x["train"], x["test"], queries)
  arrays |= _patches(run, evaluator, params, images["test"].take(queries), facts)
  writer.arrays("features", **arrays)
  writer.facts(
    features={
      "evaluator": name,
      **facts,
      "train": len(x["train"]),
      "test": len(x["test"]),
      "of_train": len(data.rows["train"][1]),
      "of_test": len(data.rows["test"][1]),
      "seconds": time.perf_counter() - began,
    }
  )


def _take(data: Data, part: str, rows: np.ndarray) -> Images:
  key, whole = data.rows[part]
  return data.images[key].take(whole[rows])


def _described(
  train: Images, test: Images, x_train: np.ndarray, x_test: np.ndarray, queries: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Neighbours, groups and the map."""
  patients = patient_keys(test)
  similarity, rows = embedding.retrieve(x_train, x_test, NEAR, patient_keys(train), patients)
  xy, how = embedding.plane(x_test)
  arrays: dict[str, np.ndarray] = {
    "embedding": knn.normalise(x_test).astype(np.float16),
    "xy": xy,
    "labels": test.labels,
    "classes": np.asarray(test.info.classes),
    "age": test.ages,
    "sex": np.asarray(test.sexes),
    "site": np.asarray(test.sites),
    "query": queries,
    "similarity": similarity[queries],
  }
  shared = []
  for by in ("label", *ATTRIBUTES):
    names, (of_train, of_test) = embedding.groups((train.table, test.table), test.info.classes, by)
    several = len(set(of_test[of_test >= 0].tolist()))
    if not several or (several == 1 and by != "label"):
      continue  # unknown, or all alike: only the label is shown beside each image
    near = np.where(rows >= 0, of_train[rows], embedding.UNKNOWN)
    arrays |= {
      f"names_{by}": np.asarray(names),
      f"group_{by}": of_test,
      f"near_{by}": near[queries],
    }
    if several == 1:
      continue  # nothing to tell apart
    share, chance = embedding.shared(of_test, of_train, rows, patients)
    shared.append({"by": by, "chance": chance, **dataclasses.asdict(share)})
  arrays["image"] = _small(test.gray(queries))
  near = rows[queries]
  pictures = _small(train.gray(np.maximum(near, 0).reshape(-1)))
  arrays["near_image"] = pictures.reshape(*near.shape, *pictures.shape[1:])
  return arrays, {"map": how, "neighbours": near.shape[1], "shared": shared}


def _small(pixels: np.ndarray) -> np.ndarray:
  """u8[n s s], every so many pixels of large ones averaged into one."""
  step = -(-pixels.shape[1] // SIDE)
  side = pixels.shape[1] // step
  cut = pixels[:, : side * step, : side * step, 0].reshape(-1, side, step, side, step)
  return np.rint(cut.mean((2, 4), dtype=np.float32)).astype(np.uint8)


def _patches(
  run: Any, evaluator: Any, params: Any, shown: Images, facts: dict[str, Any]
) -> dict[str, np.ndarray]:
  """Colours of the patches of the test images shown."""
  x = jnp.asarray(lung_overlap.normalised(shown, evaluator.mean, evaluator.std))
  patches = jax.jit(
    lambda p, x: run.encoder.encode(p, x).patches,
    compiler_options=compile_effort.options(once=True),
  )
  found = np.asarray(patches(sharding.to_host(params), x))
  colours, facts["patch_explains"] = embedding.patch_colours(found, run.encoder.grid(x.shape[1:3]))
  return {"patch_colours": colours}
