"""Puts finished runs side by side: the same test images, metrics, paired tests."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cxrjax.core.command import say
from cxrjax.core.errors import UserError
from cxrjax.evals import classification_metrics
from cxrjax.metrics import patient_bootstrap
from cxrjax.metrics.intervals import Difference
from cxrjax.report import run_files as runs
from cxrjax.report import terminal
from cxrjax.report.html import format
from cxrjax.report.naming import method_name, model_name, total_seconds
from cxrjax.report.pages.run_page import save_table
from cxrjax.report.run_files import TRAINED, Run, environment, lookup
from cxrjax.report.run_writer import FACTS, Writer, now
from cxrjax.studies import runs_page as page
from cxrjax.studies.launcher import named
from cxrjax.studies.transfer_results import cell, interval
from cxrjax.training.workdir import differences, settle_config

PLATFORM = "cpu"  # nothing is predicted
MASKS = ("dice", "iou")  # of which there is one value an image


def run(
  config: Mapping[str, Any],
  workdir: pathlib.Path,
  command: str = "",
  say: Callable[[str], None] = say,
) -> int:
  """Compares the runs of `config.runs`; writes `report.html`, `table.csv` and `run.json`.

  Raises:
    UserError: fewer than two runs, one that has not finished, or other test images.
  """
  named = read(config["runs"])
  wanted = [name for name in config["evals"].split(",") if name]
  found = collect(named, wanted)
  # Other runs may be compared in the same workdir: nothing of the last comparison is kept.
  settle_config(workdir, {k: v for k, v in config.items() if k not in ("runs", "evals")})
  (workdir / FACTS).unlink(missing_ok=True)  # facts are merged
  with Writer(workdir) as writer:
    writer.facts(
      command=command or " ".join(sys.argv),
      started=now(),
      finished=now(),
      status="finished",
      compare_runs=found,
      **environment(),
    )
    for name in found["sets"]:
      writer.arrays(f"scores_{name}", **_curves(name, named))
  save_table(workdir / "table.csv", rows(found))
  report = page.write(workdir)
  for note in found["notes"]:
    say(f"note: {note}")
  say(page.table(found))
  say(f"report    {report}")
  return 0


def read(text: str) -> dict[str, Run]:
  """The runs by name, from `A,B` or `NAME=A,NAME=B`.

  Raises:
    UserError: fewer than two, two of one name, or one that is none or has not finished.
  """
  found: dict[str, Run] = {}
  for name, folder in named(text, 2).items():
    if not (folder / FACTS).is_file():
      raise UserError(
        f"config.runs={str(folder)!r} holds no run ({FACTS} is missing); give the "
        "workdir of a finished one"
      )
    found[name] = runs.read(folder)
    status = found[name].fact("status")
    if status != "finished":
      raise UserError(
        f"config.runs={str(folder)!r} has not finished (its status: {status!r}); run "
        "its command again to its end"
      )
  return found


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
  """What one evaluator's classifier gave the test images of one run, in the order of their names.

  Attributes:
    arrays: as the evaluator left them, rows sorted.
    key: of the scores among them: "probability", "linear", "knn20"; "dice_all" for masks.
  """

  arrays: dict[str, np.ndarray]
  key: str

  @property
  def exclusive(self) -> bool:
    return bool(self.arrays["exclusive"])

  @property
  def thresholds(self) -> np.ndarray | None:
    """Of every class, for `judge`; kNN has none."""
    found, k = self.arrays.get("threshold"), self.arrays["labels"].shape[1]
    if found is None or self.key.startswith(("knn", "whitened")):
      return None
    found = np.asarray(found, np.float64).reshape(-1)
    return np.concatenate([np.full(k - len(found), 0.5), found])  # of two classes the last


def collect(named: Mapping[str, Run], wanted: Sequence[str] = ()) -> dict[str, Any]:
  """All of a comparison, as facts.

  Args:
    named: the runs by name, the reference first.
    wanted: evaluators; none for all that judged every run.

  Raises:
    UserError: no evaluator judged all runs, or one of `wanted` did not; other test images.
  """
  reference, *others = named
  notes: list[str] = []
  sets = {}
  for name in _evaluators(named, wanted, notes):
    sets[name] = _set(name, named, reference, others)
  return {
    "reference": reference,
    "runs": [_about(n, r) for n, r in named.items()],
    "sets": sets,
    "changed": {n: differences(named[reference].config, named[n].config) for n in others},
    "notes": notes,
  }


def _evaluators(named: Mapping[str, Run], wanted: Sequence[str], notes: list[str]) -> list[str]:
  """Those that judged all runs, but for the ones that choose a checkpoint."""
  of = {
    n: [e for e in r.evaluators() if e in wanted or not _chooses(r, e)] for n, r in named.items()
  }
  known = list(dict.fromkeys(e for names in of.values() for e in names))
  for e in wanted:
    if e not in known:
      raise UserError(f"config.evals={e!r} judged none of the runs; they have {', '.join(known)}")
  common = [e for e in known if all(e in names for names in of.values())]
  for e in known:
    lacking = [n for n, names in of.items() if e not in names]
    if lacking and e in wanted:
      raise UserError(f"config.evals={e!r} did not judge {', '.join(lacking)}")
    if lacking:
      notes.append(f"{e} did not judge {', '.join(lacking)}, and is left out")
  common = [e for e in common if not wanted or e in wanted]
  if not common:
    each = "; ".join(f"{n}: {', '.join(names) or 'none'}" for n, names in of.items())
    raise UserError(
      f"config.runs: no evaluator judged all of them ({each}); compare runs with the "
      "same config.evals"
    )
  return common


def _chooses(run: Run, evaluator: str) -> bool:
  """Whether it judged validation images, which chose the checkpoint and so flatter it."""
  return lookup(run.config, "evals", evaluator, "part") == "val" or (
    bool(run.fact("chosen", "evaluators")) and evaluator not in run.fact("chosen", "evaluators")
  )


def _set(
  name: str, named: Mapping[str, Run], reference: str, others: Sequence[str]
) -> dict[str, Any]:
  """One evaluator: the metrics of every run, and the differences from the reference."""
  first = named[reference]
  facts = first.fact("data", name) or {}
  scored = {n: _scored(name, n, r) for n, r in named.items()}
  for n in others:
    _check(name, (reference, first, scored[reference]), (n, named[n], scored[n]))
  latest = {n: r.only(name).latest().get(TRAINED, {}) for n, r in named.items()}
  metrics = [
    m for m in terminal.sort_metrics(set(latest[reference])) if all(m in latest[n] for n in others)
  ]
  found: dict[str, Any] = {}
  for metric in metrics:
    each = {n: _difference(metric, scored[n], scored[reference]) for n in others}
    gains = {n: g for n, g in each.items() if g is not None}
    adjusted = holm([g.p for g in gains.values()])
    found[metric] = {
      "runs": {n: interval(latest[n][metric]) for n in named},
      "gains": {
        n: {**interval(g), "p": g.p, "p_holm": p, "method": g.method}
        for (n, g), p in zip(gains.items(), adjusted, strict=True)
      },
    }
  return {"test": facts.get("test") or facts, "metrics": found}


def _curves(evaluator: str, named: Mapping[str, Run]) -> dict[str, np.ndarray]:
  """What the page draws ROC curves of: the scores of all runs, f[runs m k]; of probes the linear
  one's. Nothing for masks."""
  scored = [_scored(evaluator, n, r) for n, r in named.items()]
  head = next((h for h in ("", "linear") if all(h in s for s in scored)), None)
  if head is None or "labels" not in scored[0][head].arrays:
    return {}
  own = [s[head] for s in scored]
  return {
    "scores": np.stack([s.arrays[s.key] for s in own]),
    **{k: own[0].arrays[k] for k in ("labels", "classes", "exclusive")},
  }


def _scored(evaluator: str, name: str, run: Run) -> dict[str, Scored]:
  """By what the metrics' names begin with, rows in the order of the images' names."""
  arrays = run.arrays(f"scores_{evaluator}_{TRAINED}")
  if "dice_all" in arrays:
    keys, end, n = {"": "dice_all"}, "_all", len(arrays["dice_all"])
  elif "labels" in arrays:
    end, n, shape = "", len(arrays["labels"]), arrays["labels"].shape
    keys = {
      "" if key == "probability" else key: key
      for key, value in arrays.items()
      if key != "labels" and value.shape == shape and value.dtype.kind == "f"
    }
  else:
    keys = {}
  if not keys or f"id{end}" not in arrays:
    raise UserError(
      f"config.runs: {name} ({run.workdir}) has no predictions of single images by {evaluator!r}, "
      "as runs before this version; run it again, or leave the evaluator out with config.evals"
    )
  order = np.argsort(arrays[f"id{end}"], kind="stable")
  arrays = {
    k: v[order] if v.ndim and len(v) == n and k not in ("classes", "threshold") else v
    for k, v in arrays.items()
  }
  return {start: Scored(arrays, key) for start, key in keys.items()}


def _check(evaluator: str, a: tuple[str, Run, Any], b: tuple[str, Run, Any]) -> None:
  """Refuses two runs that were not judged by the same images."""
  (name, first, ours), (other, second, theirs) = a, b
  x, y = (next(iter(s.values())).arrays for s in (ours, theirs))
  ids = "id_all" if "id_all" in x else "id"
  start = f"config.runs: {name} and {other} were judged by other images ({evaluator}: "
  way_out = "); compare runs with the same test split"
  if ids not in y or x[ids].shape != y[ids].shape or (x[ids] != y[ids]).any():
    both = len(set(x[ids].tolist()) & set(y.get(ids, np.zeros(0)).tolist()))
    raise UserError(
      f"{start}{len(x[ids])} and {len(y.get(ids, ()))}, {both} of them the same{way_out}"
    )
  prints = [
    lookup(r.fact("data", evaluator), "test", "fingerprint")
    or r.fact("data", evaluator, "fingerprint")
    for r in (first, second)
  ]
  if prints[0] != prints[1]:
    raise UserError(f"{start}their names are the same, their content is not{way_out}")
  if "labels" in x:
    same = (
      x["labels"].shape == y["labels"].shape
      and (x["classes"].tolist() == y["classes"].tolist())
      and np.array_equal(x["labels"], y["labels"], equal_nan=True)
    )
    if not same:
      raise UserError(f"{start}their labels or classes are not the same{way_out}")


def _difference(
  metric: str, ours: Mapping[str, Scored], theirs: Mapping[str, Scored]
) -> Difference | None:
  """By how much it is above the reference's; None where single images have no say in it."""
  head, measure, of = format.parts(metric)
  if head not in ours or head not in theirs:
    return None
  a, b = ours[head], theirs[head]
  if a.key == "dice_all":
    if measure not in MASKS:
      return None
    names = [str(p) for p in a.arrays["patient_all"]]
    x, y = (
      patient_bootstrap.mean(s.arrays[f"{measure}_all"][:, None].astype(np.float64), names)
      for s in (a, b)
    )
    return patient_bootstrap.difference(x, y)
  p, q, labels, patients = a.arrays[a.key], b.arrays[b.key], a.arrays["labels"], a.arrays["patient"]
  if of:
    classes = a.arrays["classes"].tolist()
    if of not in classes:  # what is not of the scores as they are kept, such as `ece/uncalibrated`
      return None
    c = classes.index(of)
    cut = _of(a.thresholds, c), _of(b.thresholds, c)
    # One class against the rest, by the decisions taken between all of them.
    if measure not in classification_metrics.SCORES and a.exclusive:
      half = np.full(len(classes), 0.5)  # as `judge` has it where there are no thresholds
      p, q = (
        classification_metrics.called(
          s.arrays[s.key], True, half if s.thresholds is None else s.thresholds
        ).astype(np.float64)
        for s in (a, b)
      )
      cut = half[:1], half[:1]
    return classification_metrics.difference(
      p[:, [c]], q[:, [c]], labels[:, [c]], patients, False, measure, cut
    )
  return classification_metrics.difference(
    p, q, labels, patients, a.exclusive, measure, (a.thresholds, b.thresholds)
  )


def _of(thresholds: np.ndarray | None, c: int) -> np.ndarray | None:
  return None if thresholds is None else thresholds[[c]]


def holm(values: Sequence[float]) -> list[float]:
  """P values corrected for all of them being looked at; NaN stays, and does not count.

  References:
    Holm 1979, Scand. J. Stat. 6:65.
  """
  order = sorted((i for i, p in enumerate(values) if math.isfinite(p)), key=values.__getitem__)
  found, largest = [math.nan] * len(values), 0.0
  for rank, i in enumerate(order):
    largest = max(largest, min(1.0, (len(order) - rank) * values[i]))
    found[i] = largest
  return found


def _about(name: str, run: Run) -> dict[str, Any]:
  """What a run is."""
  return {
    "name": name,
    "workdir": str(run.workdir),
    "method": method_name(run),
    "model": model_name(run),
    "start": run.fact("init"),
    "n": run.fact("data", "train", "n"),
    "train": run.fact("data", "train", "name"),
    "split": run.fact("data", "train", "split"),
    "steps": run.fact("steps"),
    "epochs": run.fact("epochs"),
    "chosen": run.fact("chosen"),
    "seed": run.config.get("seed"),
    "total_s": total_seconds(run),
    "command": run.fact("command"),
  }


def rows(found: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
  """A header and a line for every set, metric and run."""
  yield (
    "data",
    "metric",
    "run",
    "value",
    "low",
    "high",
    "n",
    "undefined",
    "reference",
    "difference",
    "difference_low",
    "difference_high",
    "p",
    "p_holm",
    "test",
  )
  for name, of in found["sets"].items():
    for metric, values in of["metrics"].items():
      for run_name, e in values["runs"].items():
        gain = values["gains"].get(run_name) or {}
        yield [
          name,
          metric,
          run_name,
          *(cell(e[k]) for k in ("value", "low", "high", "n")),
          e.get("undefined", ""),
          found["reference"] if gain else "",
          *(cell(gain.get(k)) for k in ("value", "low", "high", "p", "p_holm")),
          gain.get("method", ""),
        ]
