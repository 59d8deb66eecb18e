"""Puts finished runs side by side: their metrics on the same test images, with paired tests.

    python -m cxrjax.main --config=configs/compare_runs.py --config.runs=runs/scratch,runs/dino
    python -m cxrjax.main --config=configs/compare_runs.py --config.runs=scratch=runs/a,DINO=runs/b
    python -m cxrjax.main --config=configs/compare_runs.py:runs=runs/scratch+runs/dino

The first run is what the others are held against; `NAME=WORKDIR` gives a run another name than its
folder's. `report.html`, `table.csv` and `run.json` in the workdir have, for every set of test
images that judged all runs, each metric with its interval, and the difference with its own: of
AUROC by DeLong's test, of the others with both runs resampled together over patients. Nothing is
predicted anew. Runs that were not judged by the same images are refused.

Takes seconds. With several runs Holm's correction of the p values, for all of them at once, stands
beside each.
"""

from ml_collections import ConfigDict

from cxrjax.config.args import parse_arg

OPTIONS = {
  "runs": "",  # workdirs of finished runs, the reference first: A+B here, A,B as config.runs
  "evals": "",  # evaluators to compare by, NAME+NAME; by default all that judged test images
  "tiny": False,  # there is nothing to make smaller
}


def get_config(arg: str = "") -> ConfigDict:
  o = ConfigDict(parse_arg(arg, **OPTIONS))
  config = ConfigDict()
  config.task = "cxrjax.tasks.compare_runs"
  config.runs = o.runs.replace("+", ",")
  config.evals = o.evals.replace("+", ",")
  return config
