"""PadChest: 160,868 16-bit radiographs of all views with 193 terms (Bustos et al. 2020)."""

from __future__ import annotations

import ast
import math
import pathlib
import re
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from cxrjax.builders import csv_builder, tfds_features
from cxrjax.core.errors import UserError, suggest
from cxrjax.data.sources import archive
from cxrjax.data.splits import patient_splits

# Every term that is in `Labels`, leading blanks removed.
TERMS = frozenset(
  """
COPD signs|Chilaiditi sign|NSG tube|abnormal foreign body|abscess|adenopathy|air bronchogram|air
fluid level|air trapping|alveolar pattern|aortic aneurysm|aortic atheromatosis|aortic button
enlargement|aortic elongation|aortic endoprosthesis|apical pleural thickening|artificial aortic
heart valve|artificial heart valve|artificial mitral heart valve|asbestosis signs|ascendent aortic
elongation|atelectasis|atelectasis basal|atypical pneumonia|axial hyperostosis|azygoesophageal
recess shift|azygos lobe|blastic bone lesion|bone cement|bone metastasis|breast
mass|bronchiectasis|bronchovascular markings|bullas|calcified adenopathy|calcified
densities|calcified fibroadenoma|calcified granuloma|calcified mediastinal adenopathy|calcified
pleural plaques|calcified pleural thickening|callus rib fracture|cardiomegaly|catheter|cavitation|
central vascular redistribution|central venous catheter|central venous catheter via jugular
vein|central venous catheter via subclavian vein|central venous catheter via umbilical
vein|cervical rib|chest drain tube|chronic changes|clavicle fracture|consolidation|costochondral
junction hypertrophy|costophrenic angle blunting|cyst|dai|descendent aortic
elongation|dextrocardia|diaphragmatic eventration|double J stent|dual chamber device|electrical
device|emphysema|empyema|end on vessel|endoprosthesis|endotracheal tube|esophagic
dilatation|exclude|external foreign body|fibrotic band|fissure thickening|flattened
diaphragm|fracture|gastrostomy tube|goiter|granuloma|ground glass pattern|gynecomastia|heart
insufficiency|heart valve calcified|hemidiaphragm elevation|hiatal hernia|hilar congestion|hilar
enlargement|humeral fracture|humeral prosthesis|hydropneumothorax|hyperinflated lung|hypoexpansion|
hypoexpansion basal|increased density|infiltrates|interstitial pattern|kerley lines|kyphosis|
laminar atelectasis|lepidic adenocarcinoma|lipomatosis|lobar atelectasis|loculated fissural
effusion|loculated pleural effusion|lung metastasis|lung vascular paucity|lymphangitis
carcinomatosa|lytic bone lesion|major fissure thickening|mammary prosthesis|mass|mastectomy|
mediastinal enlargement|mediastinal mass|mediastinal shift|mediastinic lipomatosis|metal|miliary
opacities|minor fissure thickening|multiple nodules|nephrostomy tube|nipple shadow|nodule|non axial
articular degenerative changes|normal|obesity|osteopenia|osteoporosis|osteosynthesis material|
pacemaker|pectum carinatum|pectum excavatum|pericardial effusion|pleural effusion|pleural mass|
pleural plaques|pleural thickening|pneumomediastinum|pneumonia|pneumoperitoneo|pneumothorax|post
radiotherapy changes|prosthesis|pseudonodule|pulmonary artery enlargement|pulmonary artery
hypertension|pulmonary edema|pulmonary fibrosis|pulmonary hypertension|pulmonary mass|pulmonary
venous hypertension|reservoir central venous catheter|respiratory distress|reticular interstitial
pattern|reticulonodular interstitial pattern|rib fracture|right sided aortic arch|round
atelectasis|sclerotic bone lesion|scoliosis|segmental atelectasis|single chamber device|soft tissue
mass|sternoclavicular junction hypertrophy|sternotomy|subacromial space narrowing|subcutaneous
emphysema|suboptimal study|superior mediastinal enlargement|supra aortic elongation|surgery|surgery
breast|surgery heart|surgery humeral|surgery lung|surgery neck|suture material|thoracic cage
deformation|total atelectasis|tracheal shift|tracheostomy tube|tuberculosis|tuberculosis
sequelae|unchanged|vascular hilar enlargement|vascular redistribution|ventriculoperitoneal drain
tube|vertebral anterior compression|vertebral compression|vertebral degenerative changes|vertebral
fracture|volume loss
""".replace("|\n", "|")
  .replace("\n", " ")
  .strip()
  .split("|")
)

EXCLUDED = "exclude"  # the readers' own mark for what should not be used
# Alone these say nothing of what is to be seen.
NO_STATEMENT = frozenset({"unchanged", "suboptimal study"})

# Words that a term has to contain to make a finding. These are the findings and, but for WITHOUT,
# the terms of torchxrayvision's PC_Dataset (Cohen et al. 2022, arXiv 2111.00595), under the names
# that NIH ChestX-ray14 uses where it has them.
FINDINGS: dict[str, tuple[str, ...]] = {
  "Air Trapping": ("air trapping",),
  "Aortic Atheromatosis": ("aortic atheromatosis",),
  "Aortic Elongation": ("aortic elongation",),
  "Atelectasis": ("atelectasis",),
  "Bronchiectasis": ("bronchiectasis",),
  "Cardiomegaly": ("cardiomegaly",),
  "Consolidation": ("consolidation", "air bronchogram"),
  "Costophrenic Angle Blunting": ("costophrenic angle blunting",),
  "Edema": ("edema",),
  "Effusion": ("effusion",),
  "Emphysema": ("emphysema",),
  "Fibrosis": ("fibrosis",),
  "Flattened Diaphragm": ("flattened diaphragm",),
  "Fracture": ("fracture",),
  "Granuloma": ("granuloma",),
  "Hemidiaphragm Elevation": ("hemidiaphragm elevation",),
  "Hernia": ("hernia",),
  "Hilar Enlargement": ("hilar enlargement", "adenopathy", "pulmonary artery enlargement"),
  "Infiltration": (
    "infiltrates",
    "interstitial pattern",
    "ground glass pattern",
    "alveolar pattern",
    "consolidation",
    "air bronchogram",
  ),
  "Mass": ("mass",),
  "Nodule": ("nodule",),
  "Pleural_Thickening": ("pleural thickening",),
  "Pneumonia": ("pneumonia",),
  "Pneumothorax": ("pneumothorax",),
  "Scoliosis": ("scoliosis",),
  "Support Devices": ("device", "pacemaker"),
  "Tube": ("tube", "stent"),
  "Tuberculosis": ("tuberculosis",),
}
# Terms that contain such a word and mean another thing.
WITHOUT = {
  "Effusion": {"pericardial effusion"},
  "Emphysema": {"subcutaneous emphysema"},
  "Mass": {"breast mass", "soft tissue mass"},
  "Nodule": {"pseudonodule"},
  "Tube": {"tuberculosis", "tuberculosis sequelae"},
}
NORMAL = {"No Finding": "normal"}

LABELS = (*FINDINGS, *NORMAL)
MAKES = {
  **{
    name: frozenset(term for term in TERMS if any(word in term for word in words))
    - WITHOUT.get(name, set())
    for name, words in FINDINGS.items()
  },
  **{name: frozenset({term}) for name, term in NORMAL.items()},
}

WHERE = "https://bimcv.cipf.es/bimcv-projects/padchest (on request)"
CANDIDATES = ("BIMCV-PadChest*", "PadChest*", "PADCHEST*", "padchest*")
MARKERS = ("PADCHEST_chest_x_ray_images_labels_160K*.csv*",)
SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}  # of the patients; none was published
VIEWS = {"PA": "PA", "AP": "AP", "AP_horizontal": "AP", "L": "L", "COSTAL": ""}

_PATTERN = r"(?:^|/)([^/]+\.png)$"
_NUMBERED = re.compile(r"(?:^|/)(\d{1,2})(?:\.zip$|/(?=[^/]+\.png$))")
_TABLE = re.compile(r"(?:^|/)PADCHEST_chest_x_ray_images_labels_160K[^/]*\.csv(?:\.gz)?$")
_COLUMNS = (
  "ImageID",
  "ImageDir",
  "StudyDate_DICOM",
  "StudyID",
  "PatientID",
  "PatientBirth",
  "PatientSex_DICOM",
  "Projection",
  "PhotometricInterpretation_DICOM",
  "MethodLabel",
  "Labels",
)
_OLDEST = 120
_LONGEST = 10_000  # characters of a list of terms
_ALWAYS = "21684011136696401"  # digits that all names begin with
_KNOWN = {  # images that others found to be of no use, by the rest of their names
  "it was never published": (
    "2819207061112010307142602253_04-014-084",
    "2989926673512011074122523403_00-163-058",
    "2959786098432011033083840143_00-176-115",
    "2558082906712009327122220177_00-102-064",
    "2339356563862009072111404053_00-043-192",
    "3076187734852011291090445391_00-196-188",
    "2373310883942009117084022290_00-064-025",
    "2283393834152009033102258826_00-059-087",
    "2373310883942009170084120009_00-097-074",
    "2819207061112010315104455352_04-024-184",
    "2819207061112010306085429121_04-020-102",
  ),
  "it was published damaged": (
    "2989926673512011083134050913_00-168-009",
    "2989926673512011151082430686_00-157-045",
  ),
  "it was published cut short": (
    "2373310883942009152114636712_00-102-045",
    "2819207061112010281134410801_00-129-131",
    "2487858717522009280135853083_00-075-001",
    "3686042548532013208193054515_02-026-007",
    "3590140476722013058110301622_02-056-111",
    "3590140476722013043111952381_02-065-198",
    "3829543166512013353113303615_02-092-190",
    "3962490064942014134093945580_01-178-104",
  ),
}
BAD = {f"{_ALWAYS}{name}.png": reason for reason, names in _KNOWN.items() for name in names}


class Builder(csv_builder.PublishedBuilder):
  """Builds the data set from the published archives in the manual folder."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv (or .csv.gz) and the archives 0.zip "
    "to 50.zip and 54.zip, or folders of these names, into the manual folder. They are at "
    f"{WHERE}."
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return self.described(
      tfds_features.features(
        labels=LABELS,
        encoding="png",
        bits=16,
        study=tfds.features.Text(),
        projection=tfds.features.Text(doc="As published: PA, AP, AP_horizontal, L or COSTAL."),
        terms=tfds.features.Sequence(tfds.features.Text(), doc="All terms of the report."),
        by_physician=tfds.features.Scalar(
          np.bool_, doc="Whether a physician read the terms from the report, or a network."
        ),
        inverted=tfds.features.Scalar(np.bool_, doc="Whether it was published as MONOCHROME1."),
      ),
      "https://bimcv.cipf.es/bimcv-projects/padchest",
    )

  def listing(self, manual: pathlib.Path) -> tuple[csv_builder.Listing, list[csv_builder.Part]]:
    path = archive.find(manual, CANDIDATES, WHERE, MARKERS)
    with archive.Archive(path) as opened:
      names = opened.names
      tables = [name for name in names if _TABLE.search(name)]
      if not tables:
        raise UserError(
          f"{path} has no PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv; get it from {WHERE}"
        )
      table = min(tables, key=lambda name: (name.count("/"), name))
      found, folders = csv_builder.Listing(LABELS, _PATTERN), set()
      for place, row in archive.rows(opened, table, _COLUMNS):
        found.add(row["ImageID"], _listed(row, place), place)
        folders.add(row["ImageDir"])
    unknown = [key for key, reason in found.left_out.items() if reason.startswith(_TERM)]
    if csv_builder.is_too_many(len(unknown), len(found.rows)):
      raise UserError(
        f"{path}: {table} has terms that are not PadChest's, {len(unknown):,} images "
        f"such as {unknown[0]}: another release?"
      )
    inverted = sum(row.inverted for row in found.rows.values())
    if inverted:
      self.left_out.note(
        f"{inverted:,} images that PadChest's table calls MONOCHROME1 were inverted"
      )
    return found, _parts(path, names, folders)


_TERM = "its report has a term that is not PadChest's:"


def _listed(row: dict[str, str], place: str) -> csv_builder.ImageRow | str:
  """What the table says of one image, or why it is of no use."""
  key, projection = row["ImageID"], row["Projection"].strip()
  if not key.endswith(".png") or "/" in key:
    raise UserError(f"{place}: ImageID is {key[:60]!r}, not the name of a PNG")
  if projection not in VIEWS and projection != "EXCLUDE":
    raise UserError(f"{place}: Projection is {projection[:20]!r}{suggest(projection, VIEWS)}")
  terms = _terms(row["Labels"])
  strange = sorted(set(terms or ()) - TERMS)
  if key in BAD:
    return BAD[key]
  if projection == "EXCLUDE" or EXCLUDED in (terms or ()):
    return "PadChest's readers marked it as of no use (exclude)"
  if strange:
    return f"{_TERM} {strange[0][:40]!r}"
  inverted = row["PhotometricInterpretation_DICOM"].strip() == "MONOCHROME1"
  return csv_builder.ImageRow(
    patient=row["PatientID"],
    split=patient_splits.assign_by_name([row["PatientID"]], SPLITS)[0],
    labels=_labels(terms),
    age=_age(row),
    sex=row["PatientSex_DICOM"].strip(),
    view=VIEWS[projection],
    inverted=inverted,
    more={
      "study": row["StudyID"],
      "projection": projection,
      "terms": sorted(set(terms or ())),
      "by_physician": row["MethodLabel"].strip() == "Physician",
      "inverted": inverted,
    },
  )


def _terms(text: str) -> list[str] | None:
  """The terms of a list as Python writes it; None where there is none that can be read."""
  try:
    found = ast.literal_eval(text) if len(text) <= _LONGEST else None
  except (ValueError, SyntaxError, RecursionError, MemoryError):
    return None
  if not isinstance(found, list) or not all(isinstance(term, str) for term in found):
    return None
  return [" ".join(term.split()) for term in found if term.strip()]


def _labels(terms: list[str] | None) -> tuple[float, ...]:
  """1 or 0 for each finding; NaN where the report says nothing of what is to be seen."""
  if not set(terms or ()) - NO_STATEMENT:
    return (math.nan,) * len(LABELS)
  return tuple(float(not MAKES[name].isdisjoint(terms)) for name in LABELS)


def _age(row: dict[str, str]) -> float:
  """Years between birth and study, of which the table has the year; a year too many at most."""
  try:
    years = int(row["StudyDate_DICOM"][:4]) - int(float(row["PatientBirth"]))
  except (ValueError, OverflowError):
    return math.nan
  return float(years) if 0 <= years <= _OLDEST else math.nan


def _parts(path: pathlib.Path, names: tuple[str, ...], folders: set[str]) -> list[csv_builder.Part]:
  """The archives or folders with the images.

  Raises:
    UserError: one that the table names is not there.
  """
  numbered: dict[str, set[str]] = {}
  for name in names:
    match = _NUMBERED.search(name)
    if match:
      numbered.setdefault(match[1], set()).add(name[: match.end()])
  if not numbered:
    return [csv_builder.Part(str(path))]  # all in one folder
  lacking = sorted(folders - set(numbered), key=lambda n: (len(n), n))
  if lacking:
    raise UserError(
      f"{path} has no {lacking[0]}.zip (of the {len(folders)} archives these are not "
      f"there: {', '.join(lacking)}); get them from {WHERE}"
    )
  if not path.is_dir():
    return [csv_builder.Part(str(path))]
  # Where an archive and what it unpacks to are both there, the archive is what was published.
  return [
    csv_builder.Part(str(path / min(found, key=lambda name: (name.endswith("/"), name))))
    for _, found in sorted(numbered.items(), key=lambda item: int(item[0]))
  ]
