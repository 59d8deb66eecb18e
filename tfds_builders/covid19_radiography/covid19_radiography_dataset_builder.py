"""The COVID-19 Radiography Database (Chowdhury et al. 2020, Rahman et al. 2021)."""

from __future__ import annotations

import collections
import dataclasses
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float32
from PIL import Image
from scipy.sparse import coo_array, csgraph

from cxrjax.builders import base_builder, tfds_features
from cxrjax.core.errors import UserError, suggest
from cxrjax.data.decoding import decode
from cxrjax.data.sources import archive, xlsx
from cxrjax.data.splits import patient_splits

LABELS = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
FRACTIONS = {"train": 0.7, "validation": 0.1, "test": 0.2}
ALIKE = 0.97  # correlation of thumbnails; see the README
SIDE = 64
PUBLISHED = 21165
WHERE = "https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database"
CANDIDATES = (
  "COVID-19_Radiography*.zip",
  "COVID-19_Radiography*",
  "covid19-radiography-database*",
  "COVID-19 Radiography*",
  "archive.zip",
  "archive",
)
SITES = {  # what an address holds, and whose images those are
  "bimcv": "BIMCV",
  "ml-workgroup": "ml-workgroup",
  "sirm": "SIRM",
  "eurorad": "Eurorad",
  "ieee8023": "Cohen",
  "figshare": "figshare",
  "armiro": "COVID-CXNet",
  "cxnet": "COVID-CXNet",
  "rsna": "RSNA",
  "paultimothymooney": "Kermany",
}

_CLASS = "|".join(LABELS)
_IMAGE = rf"({_CLASS})/(?:images/)?([^/]+)\.(png|jpe?g)"
_MASK = rf"({_CLASS})/masks/([^/]+)\.(?:png|jpe?g)"
_TABLE = rf"({_CLASS})\.m[ae]t[ad]*ata\.xlsx"  # one is misspelt in some releases
_BLOCK = 2048


@dataclasses.dataclass(frozen=True)
class Example:
  """One published image, with the address it was taken from and its near-duplicates' name."""

  id: str
  member: str
  label: str
  mask: str = ""
  source: str = ""
  patient: str = ""


class Builder(base_builder.SetBuilder):
  """Builds the data set from the published archive in the manual folder."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put the published archive (COVID-19_Radiography_Dataset.zip, archive.zip), or the folder it "
    f"unpacks to, into the manual folder. It is at {WHERE}."
  )

  def _info(self) -> tfds.core.DatasetInfo:
    self.left_out = tfds_features.LeftOut()
    return self.dataset_info_from_configs(
      features=tfds_features.features(
        label=LABELS,
        mask=True,
        source=tfds.features.Text(doc="Address of where the authors found it; may be empty."),
      ),
      supervised_keys=("image", "label"),
      homepage=WHERE,
      metadata=self.left_out.metadata,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
    path = archive.find(dl_manager.manual_dir, CANDIDATES, WHERE, LABELS[:1])
    with archive.Archive(path) as opened:
      found = examples(opened, self.left_out)
      if not all(example.patient for example in found):
        found = grouped(opened, found, self.left_out)
    return {
      name: tfds_features.at_least_one(self._generate_examples(path, chosen), name, self.left_out)
      for name, chosen in assign(found).items()
    }

  def _generate_examples(self, path, chosen: list[Example]) -> Iterator[tuple[str, dict]]:
    with archive.Archive(path) as opened:
      for example in chosen:
        image, mask = opened.read(example.member), None
        try:
          size = decode.decode(image).shape[:2]
        except decode.BadImage as error:
          self.left_out.add(example.id, str(error))
          continue
        try:
          if example.mask:
            mask = tfds_features.mask(opened.read(example.mask), like=size)
        except decode.BadImage as error:
          self.left_out.note(f"{example.id} counts as having no mask: {error}")
        yield (
          example.id,
          tfds_features.example(
            self.info.features,
            image=image,
            id=example.id,
            mask=mask,
            # Near-duplicates are of one patient; of an image alone the patient is unknown.
            patient="" if example.patient == example.id else example.patient,
            label=example.label,
            site=site(example.source),
            source=example.source,
          ),
        )


def site(source: str) -> str:
  """The collection that an address belongs to: one of SITES, or else the host."""
  known = next((name for part, name in SITES.items() if part in source.lower()), None)
  return known or urllib.parse.urlsplit(source).hostname or source


def examples(opened: archive.Archive, left_out: tfds_features.LeftOut) -> list[Example]:
  """All images, sorted by id; those of a manifest with their group as patient.

  Raises:
    UserError: it is another archive or release, or only a part of this one, or its tables make no
      sense.
  """
  left_out.add_all(opened.refused)
  found: dict[str, Example] = {}
  masks = {
    name: member for (_, name), member in tfds_features.match_files(opened.names, _MASK).items()
  }
  for (folder, name, _), member in sorted(tfds_features.match_files(opened.names, _IMAGE).items()):
    label = next(label for label in LABELS if label.lower() == folder.lower())
    if not name.lower().startswith(f"{label.lower()}-"):
      left_out.add(member, f"its name is not one of {label}")
    elif name in found:
      left_out.add(member, f"{name} is there already, as {found[name].member}")
    else:
      found[name] = Example(name, member, label, masks.get(name, ""))
  groups, expected = _manifest(opened, found, left_out)
  have = collections.Counter(example.label for example in found.values())
  if not have["COVID"] and tfds_features.match_files(
    opened.names, r"(COVID-19)/[^/]+\.(?:png|jpe?g)"
  ):
    raise UserError(
      f"{opened.path} is a release of 2020, with other folders; get the one with "
      f"{PUBLISHED:,} images from {WHERE}"
    )
  for label in expected:
    if not have[label]:
      raise UserError(
        f"{opened.path} has no images in {label}: not this data set's archive, or "
        f"only a part of it; get it from {WHERE}"
      )
  if len(found) != PUBLISHED:
    left_out.note(f"{len(found):,} images, where {PUBLISHED:,} are published")
  sources = _sources(opened, found, left_out)
  return [
    dataclasses.replace(example, source=sources.get(name, ""), patient=groups.get(name, ""))
    for name, example in sorted(found.items())
  ]


def _manifest(
  opened: archive.Archive, found: dict[str, Example], left_out: tfds_features.LeftOut
) -> tuple[dict[str, str], list[str]]:
  """Group of each image that a manifest lists, and the classes that there should be.

  `found` loses the images that a manifest does not list.
  """
  groups, expected = {}, set()
  members = {example.member: name for name, example in found.items()}
  for manifest in tfds_features.match_files(opened.names, r"manifest\.csv").values():
    top = manifest.removesuffix("manifest.csv")
    for place, row in archive.rows(opened, manifest, ("path", "label", "duplicate_group")):
      if row["label"] not in LABELS:
        raise UserError(f"{place} has the label {row['label']!r}{suggest(row['label'], LABELS)}")
      expected.add(row["label"])
      path = row["path"]
      # Its paths are from where the archive begins, or from where the manifest lies.
      name = (
        members.get(path) or members.get(top + path) or members.get(top + path.partition("/")[2])
      )
      if name is None:
        left_out.add(path, "manifest.csv lists it, but it is not there")
      elif found[name].label != row["label"]:
        raise UserError(f"{place} calls {path} {row['label']}")
      elif name in groups:
        raise UserError(f"{place} lists {path} a second time")
      else:
        group = row["duplicate_group"].strip()
        groups[name] = f"group-{group}" if group else name
    for name in sorted(set(found) - set(groups)):
      left_out.add(found.pop(name).member, "manifest.csv does not list it")
  return groups, sorted(expected) or list(LABELS)


def _sources(
  opened: archive.Archive, found: dict[str, Example], left_out: tfds_features.LeftOut
) -> dict[str, str]:
  """Address of each image that the metadata list."""
  names = {name.lower(): name for name in found}  # those of Normal are upper case in its table
  sources: dict[str, str] = {}
  for table in tfds_features.match_files(opened.names, _TABLE).values():
    for _, row in xlsx.rows(opened, table, ("FILE NAME", "URL")):
      name = names.get(row["FILE NAME"].lower())
      if name is None:
        left_out.add(row["FILE NAME"], f"{table} lists it, but it is not there")
      else:
        sources.setdefault(name, row["URL"])
  unknown = len(found) - len(sources)
  if unknown:
    left_out.note(
      f"{unknown:,} of {len(found):,} images are in no metadata: their source is unknown"
    )
  return sources


def grouped(
  opened: archive.Archive, found: list[Example], left_out: tfds_features.LeftOut
) -> list[Example]:
  """The same images with near-duplicates as one patient, named after the first of them."""
  groups = alike(np.stack([signature(opened.read(example.member)) for example in found]))
  first: dict[int, str] = {}
  sizes = collections.Counter(groups)
  for example, group in zip(found, groups, strict=True):
    first.setdefault(group, example.id)
  left_out.note(
    f"{sum(n for n in sizes.values() if n > 1):,} images have near-duplicates among "
    f"the others (thumbnails correlate with more than {ALIKE}); no split parts them"
  )
  return [
    dataclasses.replace(
      example, patient=example.id if sizes[group] == 1 else f"group-{first[group]}"
    )
    for example, group in zip(found, groups, strict=True)
  ]


def signature(image: bytes) -> Float32[np.ndarray, "4096"]:
  """A thumbnail of mean 0 and norm 1; zeros for an image that is blank or cannot be decoded."""
  try:
    pixels = decode.decode(image, at_least=SIDE)[..., 0]
  except decode.BadImage:  # said when it is stored
    return np.zeros(SIDE * SIDE, np.float32)
  small = Image.fromarray(pixels.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BOX)
  levels = np.asarray(small, np.float32).ravel()
  levels = levels - levels.mean()
  return levels / max(float(np.linalg.norm(levels)), 1e-6)


def alike(signatures: Float32[np.ndarray, "n d"], least: float = ALIKE) -> list[int]:
  """Group of each signature: those connected by pairs whose product is more than `least`."""
  n, pairs = len(signatures), []
  for a in range(0, n, _BLOCK):
    for b in range(a, n, _BLOCK):
      products = signatures[a : a + _BLOCK] @ signatures[b : b + _BLOCK].T
      pairs.append(np.argwhere(products > least) + np.array((a, b)))
  rows, columns = np.concatenate(pairs).T
  graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(n, n))
  return csgraph.connected_components(graph, directed=False)[1].tolist()


def assign(found: Sequence[Example]) -> dict[str, list[Example]]:
  """The images of each split, of which none is official."""
  labels = np.array([[float(e.label == name) for name in LABELS] for e in found], np.float32)
  rows = patient_splits.split_by_patient(
    [e.patient for e in found], FRACTIONS, seed=0, labels=labels
  )
  return {name: [found[i] for i in chosen] for name, chosen in rows.items()}
