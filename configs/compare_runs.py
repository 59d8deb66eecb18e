"""Puts finished runs side by side: their metrics on the same test images, with paired tests.

    python -m cxrjax.main --config=configs/compare_runs.py --config.runs=runs/scratch,runs/dino
    python -m cxrjax.main --config=configs/compare_runs.py --config.runs=scratch=runs/a,DINO=runs/b

The first run is what the others are held against; `NAME=WORKDIR` gives a run another name than its
folder's. `report.html`, `table.csv` and `run.json` in the workdir have, for every set of test
images that judged all runs, each metric with its interval, and the difference with its own: of
AUROC by DeLong's test, of the others with both runs resampled together over patients. Nothing is
predicted anew. Runs that were not judged by the same images are refused.

Takes seconds. With several runs Holm's correction of the p values, for all of them at once, stands
beside each.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.task = "cxrjax.tasks.compare_runs"
  config.runs = ""   # A,B,C: workdirs of finished runs, the reference first
  config.evals = ""  # NAME,NAME: evaluators to compare by; all that judged test images
  return config
