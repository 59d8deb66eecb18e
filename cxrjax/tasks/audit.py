"""Audits sources of radiographs: near-duplicates, patients, bad images, labels, thumbnail floor."""

from __future__ import annotations

import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from cxrjax.audit import images, page, statistics
from cxrjax.audit.images import Pair, Part
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

  parts = images.open_parts(
    data["sources"],
    data["splits"],
    size=data["size"],
    fit=data["fit"],
    bits=data["bits"],
    window=data["window"],
    cache_dir=data["cache_dir"] or None,
    progress=progress,
  )
  lap("decode")
  for part in parts:
    say(f"data      {part.name}: {len(part.table)} images of {part.info.name}")
  for note in dict.fromkeys(note for part in parts for note in part.info.notes):
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
    n_couples = len(parts) * (len(parts) + 1) // 2
    with tqdm.tqdm(
      total=n_couples,
      desc="comparing",
      unit=" pairs of splits",
      disable=not progress,
      file=sys.stderr,
      dynamic_ncols=True,
    ) as bar:
      pairs, looks = images.near_duplicates(
        parts, config["same"], config["first"], config["looks"], bar.update
      )
    lap("compare")
    findings = statistics.classify_images(parts)
    lap("look")
    copies = [p for p in pairs if p.r >= config["copy"]]
    groups = images.group_numbers(parts, copies)
    floors = statistics.floors(parts, images.owners(parts, groups), config["folds"])
    lap("floor")
    crossing = images.crossing_patients(parts)
    numbers = statistics.number_patients(parts)

    _write_csv(workdir / "pairs.csv", statistics.pair_rows(parts, pairs, config["copy"]))
    _write_csv(workdir / "patients.csv", statistics.patient_rows(parts, crossing, numbers))
    _write_csv(workdir / "images.csv", statistics.image_rows(parts, findings, groups, numbers))
    _write_csv(workdir / "floor.csv", statistics.floor_rows(floors))
    facts = statistics.facts(parts, pairs, config["copy"], findings, crossing, numbers, floors)
    shown = statistics.chosen(parts, pairs, config["shown"])
    device = jax.devices()[0]
    writer.facts(
      audit=facts
      | {
        "pairs": facts["pairs"]
        | looks
        | {"shown": [statistics.pair_facts(parts, p, config["copy"]) for p in shown]}
      },
      device={"platform": device.platform, "kind": device.device_kind, "devices": 1},
      settings={k: config[k] for k in ("copy", "same", "first", "looks", "folds")}
      | {"size": data["size"], "fit": data["fit"]},
      timing={f"{k}_s": v for k, v in seconds.items()},
      status="finished",
      finished=now(),
    )
    writer.arrays("audit", **_pictures(parts, shown, findings))
  report = page.write(workdir)
  for line in statistics.summary(facts):
    say(line)
  say(f"report    {report}")
  return 0


def _check(config: Mapping[str, Any]) -> None:
  if not config["data"]["sources"]:
    raise UserError("config.data.sources is empty; give --config=configs/audit.py:data=folder:PATH")
  for key in ("copy", "same", "first"):
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
      raise UserError(f"config.{key}={value!r} is no correlation; give a number from 0 to 1")
  if config["same"] > config["copy"]:
    raise UserError(
      f"config.same={config['same']} must not be above config.copy={config['copy']}: "
      "a copy of a radiograph shows the same patient"
    )
  for key, least in (("looks", 1), ("folds", 2), ("shown", 0)):
    if isinstance(config[key], bool) or not isinstance(config[key], int) or config[key] < least:
      raise UserError(f"config.{key}={config[key]!r} must be a whole number from {least}")


def _pictures(
  parts: Sequence[Part], pairs: Sequence[Pair], findings: statistics.ImageFindings
) -> dict[str, Any]:
  """Images for the page, as gray levels."""

  def picture(place: tuple[int, int]) -> np.ndarray:
    part = parts[place[0]]
    return part.images.gray([int(np.searchsorted(part.good, place[1]))])[0, ..., 0]

  pictures: dict[str, list] = {"pairs": [(picture(p.a), picture(p.b)) for p in pairs]}
  for kind, places in statistics.examples_by_defect(findings).items():
    pictures[kind] = [picture(p) for p in places]
  return {k: np.stack(v) for k, v in pictures.items() if v}


def _write_csv(path: pathlib.Path, rows: Iterable[Sequence[Any]]) -> None:
  save_table(path, rows)
