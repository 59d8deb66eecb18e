"""Audits data sets: near-duplicates, patients in two splits, bad images, labels, thumbnail floor.

    python -m cxrjax.main --config=configs/audit.py               # phantom radiographs
    python -m cxrjax.main --config=configs/audit.py:data=folder:PATH
    python -m cxrjax.main --config=configs/audit.py:data=tfds:chest_xray_pneumonia,manual_dir=DIR
    python -m cxrjax.main --config=configs/audit.py:data=folder:A+folder:B,data.patient_regex=^[^_]+
    python -m cxrjax.main --config=configs/audit.py:tiny          # for tests

Every split of every source is compared with every other; `splits=train+test` looks at those only.
Writes `audit.html`, `pairs.csv`, `patients.csv`, `images.csv` and `floor.csv` into the workdir.
Options of the sources are written `data.csv=labels.csv`; several values of one,
`data.label_columns=edema;effusion`.
"""

from ml_collections import ConfigDict

from cxrjax.config.args import parse_arg
from cxrjax.config.recipe import options_of

OPTIONS = {
  "data": "phantom",  # phantom, folder:PATH, tfds:NAME, your module; A+B: several
  "splits": "",  # train+test; by default all that there are
  "manual_dir": "",  # where tfds: finds archives to prepare a set from, on first use
  "examples": 512,  # of each of the phantom's splits
  "size": 128,  # images are compared at up to 96 pixels and shown at this many
  "copy": 0.9,  # detail of the same radiograph correlates at least like this
  "same": 0.8,  # and that of the same patient like this
  "tiny": False,
}


def get_config(arg: str = "") -> ConfigDict:
  arg, of_source = options_of("data", arg)
  o = ConfigDict(parse_arg(arg, **OPTIONS))

  def options(source: str) -> dict:
    if source == "phantom":
      return {"n": 16 if o.tiny else o.examples, "size": o.size, **of_source}
    manual = {"manual_dir": o.manual_dir} if o.manual_dir and source.startswith("tfds:") else {}
    return {**manual, **of_source}

  config = ConfigDict()
  config.task = "cxrjax.tasks.audit"
  config.copy = o.copy  # read off real radiographs, see cxrjax/audit/duplicates.py
  config.same = o.same
  config.first = 0.65  # of signatures, for a second look
  config.looks = 50_000  # most pairs that get one; the most alike do
  config.folds = 5  # of the thumbnail floor, where there is no test split
  config.shown = 60  # pairs on the page; pairs.csv has all
  config.data = {
    "sources": tuple({"source": name, "options": options(name)} for name in o.data.split("+")),
    "splits": tuple(filter(None, o.splits.split("+"))),
    "size": 64 if o.tiny else o.size,
    "fit": "squash",  # squash, pad or crop to a square
    "bits": 8,  # of the decoded images; 8 is enough to compare
    "window": "auto",  # of 16 bits: auto, full, or gray levels "low,high"
    "cache_dir": "",  # decoded images; by default ~/.cache/cxrjax
  }
  return config
