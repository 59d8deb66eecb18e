"""Audits sources of radiographs: near-duplicates, patients, bad images, labels, thumbnail floor."""

from __future__ import annotations

import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from cxrjax.audit import csv_tables, facts, findings, floors, images, page
from cxrjax.audit.images import Pair, Place
from cxrjax.core.command import say
from cxrjax.core.errors import UserError
from cxrjax.report.pages.run_page import save_table
from cxrjax.report.run_files import environment
from cxrjax.report.run_writer import FACTS, Writer, now
from cxrjax.training import workdir as workdirs


def run(
  config: Mapping[str, Any],
  workdir: pathlib.Path,
  command: str = "",
  say: Callable[[str], None] = say,
) -> int:
  """Audits the sources of `config` and writes `audit.html` and tables; returns the exit status.

  The workdir then holds `audit.html`, `pairs.csv` (near-duplicates), `patients.csv` (those in
  several splits), `images.csv` (every image with its findings), `floor.csv` (AUROC of thumbnails)
  and the page's facts in `run.json`. The sources are not changed.

  Raises:
    UserError: a source cannot be opened, or a file cannot be written.
  """
  if jax.process_index():  # process 0 alone does the audit
    return 0
  _check(config)
  workdirs.settle_config(workdir, config)
  data, began = config["data"], time.perf_counter()
  progress = sys.stderr.isatty()
  seconds: dict[str, float] = {}

  def lap(name: str) -> None:
    nonlocal began
    seconds[name], began = time.perf_counter() - began, time.perf_counter()

  splits = _open_splits(data, progress)
  lap("decode")
  for split in splits:
    say(f"data      {split.title}: {len(split.table)} images of {split.info.name}")
  for note in dict.fromkeys(note for split in splits for note in split.info.notes):
    say(f"note: {note}")
  (workdir / FACTS).unlink(missing_ok=True)  # facts are merged, and the data may have changed
  with Writer(workdir) as writer:
    writer.facts(
      command=command or " ".join(sys.argv),
      started=now(),
      finished=None,
      status="running",
      **environment(),
    )
    pairs, search = _near_duplicates(splits, config, progress)
    lap("compare")
    appearance = findings.appearance(splits)
    lap("look")
    groups = images.group_numbers(splits, [p for p in pairs if p.r >= config["copy"]])
    aurocs = floors.floors(splits, images.owners(splits, groups), config["folds"])
    lap("floor")
    crossing = images.crossing_patients(splits)
    audit = findings.Findings(splits, pairs, config["copy"], groups, appearance, crossing, aurocs)
    _write_tables(audit, workdir)
    shown = audit.shown_pairs(config["shown"])
    audit_facts = facts.facts(audit, shown)
    writer.facts(
      audit=audit_facts | {"pairs": audit_facts["pairs"] | search},
      **_provenance(config),
      timing={f"{k}_s": v for k, v in seconds.items()},
      status="finished",
      finished=now(),
    )
    writer.arrays("audit", **_pictures(audit, shown))
  report = page.write(workdir)
  for line in facts.summary(audit_facts):
    say(line)
  say(f"report    {report}")
  return 0


def _provenance(config: Mapping[str, Any]) -> dict[str, Any]:
  """Facts on the device and the settings."""
  device, data = jax.devices()[0], config["data"]
  settings = {k: config[k] for k in ("copy", "same", "first", "looks", "folds")}
  return {
    "device": {"platform": device.platform, "kind": device.device_kind, "devices": 1},
    "settings": settings | {"size": data["size"], "fit": data["fit"]},
  }


def _open_splits(data: Mapping[str, Any], progress: bool) -> list[images.Split]:
  """The splits of all sources of `config.data`, decoded."""
  return images.open_splits(
    data["sources"],
    data["splits"],
    size=data["size"],
    fit=data["fit"],
    bits=data["bits"],
    window=data["window"],
    cache_dir=data["cache_dir"] or None,
    progress=progress,
  )


def _near_duplicates(
  splits: Sequence[images.Split], config: Mapping[str, Any], progress: bool
) -> tuple[list[Pair], dict[str, Any]]:
  """Pairs of images that are alike, within and between splits; and facts about the search."""
  n_couples = len(splits) * (len(splits) + 1) // 2
  with tqdm.tqdm(
    total=n_couples,
    desc="comparing",
    unit=" pairs of splits",
    disable=not progress,
    file=sys.stderr,
    dynamic_ncols=True,
  ) as bar:
    return images.near_duplicates(
      splits, config["same"], config["first"], config["looks"], bar.update
    )


def _write_tables(audit: findings.Findings, workdir: pathlib.Path) -> None:
  save_table(workdir / "pairs.csv", csv_tables.pairs(audit))
  save_table(workdir / "patients.csv", csv_tables.patients(audit))
  save_table(workdir / "images.csv", csv_tables.images(audit))
  save_table(workdir / "floor.csv", csv_tables.floors(audit))


def _check(config: Mapping[str, Any]) -> None:
  if not config["data"]["sources"]:
    raise UserError("config.data.sources is empty; give --config=configs/audit.py:data=folder:PATH")
  for key in ("copy", "same", "first"):
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
      raise UserError(f"config.{key}={value!r} is not a correlation; give a number from 0 to 1")
  if config["same"] > config["copy"]:
    raise UserError(
      f"config.same={config['same']} must not be above config.copy={config['copy']}: "
      "a copy of a radiograph shows the same patient"
    )
  for key, least in (("looks", 1), ("folds", 2), ("shown", 0)):
    if isinstance(config[key], bool) or not isinstance(config[key], int) or config[key] < least:
      raise UserError(f"config.{key}={config[key]!r} must be a whole number from {least}")


def _pictures(audit: findings.Findings, pairs: Sequence[Pair]) -> dict[str, Any]:
  """Images for the page, as gray levels."""

  def picture(place: Place) -> np.ndarray:
    split = audit.splits[place[0]]
    return split.images.gray([int(np.searchsorted(split.good, place[1]))])[0, ..., 0]

  pictures: dict[str, list] = {"pairs": [(picture(p.a), picture(p.b)) for p in pairs]}
  for defect in findings.DEFECTS:
    pictures[defect] = [picture(place) for place in audit.examples(defect)]
  return {k: np.stack(v) for k, v in pictures.items() if v}
