"""Audits data sets: near-duplicates, patients in two splits, bad images, labels, thumbnail floor.

    python -m cxrjax.main --config=configs/audit.py               # phantom radiographs
    python -m cxrjax.main --config=configs/audit.py:data=folder:PATH
    python -m cxrjax.main --config=configs/audit.py:data=tfds:chest_xray_pneumonia,manual_dir=DIR
    python -m cxrjax.main --config=configs/audit.py:data=folder:A+folder:B,data.patient_regex=^[^_]+
    python -m cxrjax.main --config=configs/audit.py:tiny          # for tests

Every split of every source is compared with every other; `data.splits="train;test"` looks at those
only. Writes `audit.html`, `pairs.csv`, `patients.csv`, `images.csv` and `floor.csv` into the
workdir. Options of the sources are typed `data.csv=labels.csv`; several values of one,
`data.label_columns=edema;effusion`.
"""

from ml_collections import ConfigDict

from cxrjax.config import presets

DEMO = {"data.n": 512}  # of each of the phantom's splits
TINY = {"data.n": 16, "data.size": 64}


def get_config(arg: str = "") -> ConfigDict:
  c = ConfigDict()
  c.task = "cxrjax.tasks.audit"
  # Read off real radiographs, see cxrjax/audit/duplicates.py: detail of the same radiograph
  # correlates at least like `copy`, and that of the same patient like `same`.
  c.copy = 0.9
  c.same = 0.8
  c.first = 0.65  # of signatures, for a second look
  c.looks = 50_000  # most pairs that get one; the most alike do
  c.folds = 5  # of the thumbnail floor, where there is no test split
  c.shown = 60  # pairs on the page; pairs.csv has all
  c.data = {
    "source": "phantom",  # phantom, folder:PATH, tfds:NAME, your module; A+B: several
    "options": {},
    "splits": (),  # by default all that there are
    "size": 128,  # images are compared at up to 96 pixels and shown at this many
    "fit": "squash",  # squash, pad or crop to a square
    "bits": 8,  # of the decoded images; 8 is enough to compare
    "window": "auto",  # of 16 bits: auto, full, or gray levels "low,high"
    "cache_dir": "",  # decoded images; by default ~/.cache/cxrjax
  }
  presets.apply(c, arg, shared={}, demo=DEMO, tiny=TINY)
  one = ({"source": c.data.source, "options": c.data.options.to_dict()},)
  c.data.sources = c.data.source if isinstance(c.data.source, tuple) else one
  del c.data["source"], c.data["options"]
  return c
