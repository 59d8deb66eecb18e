"""1,600 real chest radiographs of children, 64 pixels a side, that come with the package.

Of Kermany et al. 2018 (`tfds:chest_xray_pneumonia`): 1,000 films to learn from, 200 to choose by,
400 of the official test part, whole patients, with or without pneumonia. CC BY 4.0, see `LICENSE`
beside this file. `benchmarks/make_mini.py` made it.
"""

from __future__ import annotations

import dataclasses
import pathlib

from cxrjax.data.sources import folder

FILMS = pathlib.Path(__file__).parent / "films.zip"


class Source(folder.Source):
  """A split of the films.

  Args:
    split: `train`, `val`, `test`, or `all`.
    cache_dir: where the index of the films is remembered.

  Raises:
    UserError: an unknown split.

  References:
    Kermany et al., Identifying Medical Diagnoses and Treatable Diseases by Image-Based Deep
    Learning, 2018, Cell 172:1122 (doi 10.17632/rscbjbr9sj).
  """

  bits = 8

  def __init__(self, split: str = "train", *, cache_dir: str | None = None):
    super().__init__(
      str(FILMS),
      split,
      csv="films.csv",
      path_column="path",
      label_columns="class",
      patient_column="patient",
      split_column="split",
      check="names",
      cache_dir=cache_dir,
    )
    # Wherever the package lies, it is one data set, and has no folder that could change.
    self.info = dataclasses.replace(
      self.info,
      name="mini",
      dataset="mini",
      naming=("mini",),
      skipped=(),
      notes=("radiographs of Kermany et al. 2018 (CC BY 4.0), 64 x 64 pixels",),
    )
