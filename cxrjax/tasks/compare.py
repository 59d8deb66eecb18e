"""Trains several methods on the same radiographs for the same budget, and compares them."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from cxrjax.core.command import say
from cxrjax.studies import comparison_page as page
from cxrjax.studies import comparison_results, launcher, results_table
from cxrjax.studies.comparison_plan import Job, plan
from cxrjax.training import workdir as workdirs

PLATFORM = "cpu"  # of this process; the runs use the accelerator


def run(
  config: Mapping[str, Any],
  workdir: pathlib.Path,
  command: str = "",
  say: Callable[[str], None] = say,
) -> int:
  """Runs all methods of `config`, one run after the other; returns the exit status.

  The workdir then holds a folder for each run, `report.html`, `table.csv` (a line for each run,
  data set and classifier) and all facts in `run.json`. Finished runs are not repeated, others
  resume from their last checkpoint.

  Returns:
    0; 1 where a run failed (the others are compared); 128 + signal where one stopped it.

  Raises:
    UserError: an invalid comparison, or a workdir of another one.
  """
  # Runs can be added to a comparison; their common options must not change.
  extensible = ("methods", "seeds", "folder", "measure")
  workdirs.settle_config(workdir, {k: v for k, v in config.items() if k not in extensible})
  jobs = plan(config)
  show = launcher.Reporting(
    key="compare",
    begins=lambda job: f"{job.name}: {job.steps:,} steps of {job.batch_size} images",
    ended=lambda job, why: comparison_results.summary_line(job, workdir, why),
    collect=lambda failed: comparison_results.collect(jobs, workdir, failed),
    rows=results_table.of_comparison,
    page=page,
  )
  return launcher.run_jobs(
    jobs, workdir, show, command=command, opening=_announce(jobs, workdir), say=say
  )


def _announce(jobs: list[Job], workdir: pathlib.Path) -> list[str]:
  first = jobs[0]
  lines = [
    f"data      {first.examples} images",
    f"budget    {first.budget:.3g} forward FLOPs each",
    f"workdir   {workdir}",
    "",
  ]
  width = max(len(job.method) for job in jobs)
  for job in {job.method: job for job in jobs}.values():
    images = job.steps * job.batch_size
    lines.append(
      f"{job.method:<{width}}  {job.flops_per_image / 1e6:>9,.1f} MFLOPs an image forward, "
      f"{job.steps:>7,} steps, {images / job.examples:>7.4g} epochs"
    )
  return [*lines, ""]
