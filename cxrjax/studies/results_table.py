"""`table.csv` of a study: a line for each result of each run, in one set of columns.

A line joins the facts of the run (its row in `run.json`) with those of the result. A run without
results, as one that failed, has a single line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cxrjax.core import tables

Facts = Mapping[str, Any]
BOUNDS = ("value", "low", "high")
COMPARED = ("trained", "random", "gain", "over_floor")  # AUROCs of a head in a comparison


def format_cell(value: Any) -> str:
  """Formats a number for CSV with six significant digits; empty if unknown."""
  if value is None or (isinstance(value, float) and not math.isfinite(value)):
    return ""
  return f"{value:.6g}" if isinstance(value, float) else str(value)


def of_comparison(study: Facts) -> Iterator[Sequence[Any]]:
  """A line for every run, data set and head."""
  values = " ".join(f"{quantity} {quantity}_low {quantity}_high" for quantity in COMPARED)
  columns = (
    f"method seed status data head {values} floor steps images epochs flops_per_image "
    "training_flops_per_image images_per_s training_s total_s compile_s peak_rss_bytes "
    "peak_device_bytes why command"
  )

  def results(row: Facts) -> Iterator[Facts]:
    for name, heads in (row.get("sets") or {}).items():
      floor = (study["sets"][name]["floor"] or {}).get("value")
      for head, of_head in heads.items():
        line = {"data": name, "head": head, "floor": floor}
        for quantity in COMPARED:
          interval = of_head.get(quantity) or {}
          line |= {quantity: interval.get("value")}
          line |= {f"{quantity}_{bound}": interval.get(bound) for bound in ("low", "high")}
        yield line

  return _lines(columns, ((row | (row.get("memory") or {}), results(row)) for row in study["rows"]))


def of_label_efficiency(study: Facts) -> Iterator[Sequence[Any]]:
  """A line for every run, test set and metric; before them those of the ensembles of seeds."""
  columns = (
    "curve init fraction labelled seed fold status data metric value low high total_s why command "
    "run"
  )
  ensembles = (
    (
      {k: point[k] for k in ("curve", "fraction", "labelled")}
      | {"seed": "ensemble", "status": "finished"},
      _metrics(point["ensembles"]),
    )
    for point in study["points"]
    if point["ensembles"]
  )
  runs = ((row | {"run": row["name"]}, _metrics(row.get("sets"))) for row in study["rows"])
  return _lines(columns, [*ensembles, *runs])


def of_curriculum(study: Facts) -> Iterator[Sequence[Any]]:
  """A line for every run, test set and metric, or head on its features."""
  columns = (
    "stage begins_with seed status images epochs data metric value low high total_s why command run"
  )

  def results(row: Facts) -> Iterator[Facts]:
    yield from _metrics(row.get("sets"))
    for name, heads in (row.get("features") or {}).items():
      for head, values in heads.items():
        yield {"data": name, "metric": f"{head}/auroc", **_bounds(values["trained"])}

  return _lines(
    columns,
    (
      (row | {"begins_with": row["begins"], "run": row["name"]}, results(row))
      for row in study["rows"]
    ),
  )


def of_finished_runs(study: Facts) -> Iterator[Sequence[Any]]:
  """A line for every test set, metric and run."""
  columns = (
    "data metric run value low high n undefined reference difference difference_low "
    "difference_high p p_holm test"
  )

  def results() -> Iterator[Facts]:
    for name, test_set in study["sets"].items():
      for metric, values in test_set["metrics"].items():
        for run, interval in values["runs"].items():
          line = {"data": name, "metric": metric, "run": run, **interval}
          if gain := values["gains"].get(run):
            line |= {k: gain.get(k) for k in ("p", "p_holm")}
            line |= {"reference": study["reference"], "test": gain.get("method")}
            line |= {"difference": gain.get("value")}
            line |= {f"difference_{bound}": gain.get(bound) for bound in ("low", "high")}
          yield line

  return _lines(columns, (({}, [line]) for line in results()))


def _lines(columns: str, runs: Iterable[tuple[Facts, Iterable[Facts]]]) -> Iterator[Sequence[Any]]:
  """A header, and a line for every result of every run; what is unknown is empty."""
  nothing = {"data": ""}  # a run's own fact of this name is the source that it learnt from
  records = (
    {key: format_cell(value) for key, value in {**run, **result}.items()}
    for run, results in runs
    for result in (list(results) or [nothing])
  )
  return tables.rows(columns, records)


def _metrics(sets: Facts | None) -> Iterator[Facts]:
  """Results of `{test set: {metric: interval}}`."""
  for name, metrics in (sets or {}).items():
    for metric, interval in metrics.items():
      yield {"data": name, "metric": metric, **_bounds(interval)}


def _bounds(interval: Facts) -> dict[str, Any]:
  return {bound: interval.get(bound) for bound in BOUNDS}
