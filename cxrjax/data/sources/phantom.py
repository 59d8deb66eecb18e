"""Synthetic chest radiographs with known anatomy, known disease and known shortcuts.

Image `i` of a split is a pure function of `(seed, split, i)` and the drawing options, so the source
needs no files, and no two splits share a patient. A patient has one to three images, which share
the anatomy and differ in pose, exposure, noise, heart phase and disease.

Drawing follows the path of a ray: body outline, two air-filled lungs, vessels that spread from the
hila, heart, mediastinum with aortic knob and trachea, spine, ribs (posterior and anterior),
clavicles, breasts in some patients, gas in the stomach; then the pose; then the detector: exposure,
contrast curve, gradient, noise, collimation and a side marker. Each `site` has its own contrast
curve, marker and collimation.

An image of class `opacity` has one to four consolidations: irregular, textured regions where fluid
replaces air, so they whiten lung, hide vessels and never extend beyond the lungs.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from cxrjax.core import hash_random
from cxrjax.core.errors import UserError
from cxrjax.data import base
from cxrjax.data.base import Record, SourceInfo, Table

SPLITS = ("train", "val", "test")
VERSION = 1  # part of the fingerprint; increment when any pixel changes
Plane = Float32[np.ndarray, "h w"]
Real = int | float | np.floating
_MAX_CACHED_SIDE = 64  # pixels; 4,096 images with lung masks take 34 MB

# 5 x 7 letters of the side markers; drawn by hand, so that pixels do not depend on a font.
_GLYPHS = {
  "R": ("11110", "10001", "10001", "11110", "10100", "10010", "10001"),
  "L": ("10000", "10000", "10000", "10000", "10000", "10000", "11111"),
}


def _generator(seed: int, purpose: str, split: str, index: int) -> np.random.Generator:
  key = hashlib.sha256(f"{seed}/{purpose}/{split}/{index}".encode()).digest()
  return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))


class Source(base.Source):
  """A split of synthetic radiographs.

  Args:
    split: `train`, `val`, `test`, or `all` (the three concatenated).
    n: images in each of the three splits.
    size: side of the square images, pixels.
    seed: random seed of the patients.
    sites: number of sites, each with its contrast curve, marker and collimation.
    opacity_contrast: how much of the air a consolidation replaces, relative to the default 1.
    prevalence: probability of class `opacity`.
    marker_shortcut: probability that the class is the parity of the site, which can be read off the
      marker, rather than drawn independently of it. 0 is no shortcut, 1 is a perfect one.

  Raises:
    UserError: an option is out of range.
  """

  bits = 8

  def __init__(
    self,
    split: str = "train",
    *,
    n: int = 1024,
    size: int = 128,
    seed: int = 0,
    sites: int = 2,
    opacity_contrast: int | float = 1.0,
    prevalence: int | float = 0.5,
    marker_shortcut: int | float = 0.0,
  ):
    _check("n", n, 1, 10_000_000)
    _check("size", size, 32, 2048)
    _check("seed", seed, 0, 2**63)
    _check("sites", sites, 1, 64)
    _check("opacity_contrast", opacity_contrast, 0.0, 2.0)
    _check("prevalence", prevalence, 0.0, 1.0)
    _check("marker_shortcut", marker_shortcut, 0.0, 1.0)
    if marker_shortcut and sites < 2:
      raise UserError(
        "config.data.options.marker_shortcut needs at least 2 sites (config.data.options.sites)"
      )
    if split not in (*SPLITS, "all"):
      raise UserError(f"phantom has no split {split!r}; valid: train, val, test, all")
    self._size, self._seed, self._contrast = size, seed, opacity_contrast
    self._sites = sites
    splits = SPLITS if split == "all" else (split,)
    self._rows = [_Rows(seed, s, n, sites, prevalence, marker_shortcut) for s in splits]
    self._n = n
    positive = np.concatenate([r.positive for r in self._rows])
    self.table = Table(
      ids=tuple(f"{r.split}-{i:06d}" for r in self._rows for i in range(n)),
      patients=tuple(f"{r.split}-p{p:06d}" for r in self._rows for p in r.patient),
      sites=tuple(f"site{s}" for r in self._rows for s in r.site),
      labels=np.stack([~positive, positive], axis=1).astype(np.float32),
    )
    options = {
      "n": n,
      "size": size,
      "seed": seed,
      "sites": sites,
      "prevalence": float(prevalence),
      "opacity_contrast": float(opacity_contrast),
      "marker_shortcut": float(marker_shortcut),
    }
    content = json.dumps(["phantom", VERSION, options], sort_keys=True)
    notes = ["synthetic radiographs, not of people"]
    if marker_shortcut:
      notes.append(f"shortcut: the site reveals the class with probability {marker_shortcut:g}")
    self.info = SourceInfo(
      name="phantom",
      split=split,
      classes=("normal", "opacity"),
      exclusive=True,
      splits=dict.fromkeys(SPLITS, n),
      fingerprint=hashlib.sha256(content.encode()).hexdigest(),
      notes=tuple(notes),
      dataset=f"phantom/{seed}",
    )

  def __len__(self) -> int:
    return len(self._rows) * self._n

  def __getitem__(self, index: int) -> Record:
    if not 0 <= index < len(self):
      raise IndexError(index)
    rows, i = self._rows[index // self._n], index % self._n
    draw_image = _draw_cached if self._size <= _MAX_CACHED_SIDE else _draw_cached.__wrapped__
    image, lungs = draw_image(
      self._size,
      self._seed,
      rows.split,
      int(rows.patient[i]),
      i,
      bool(rows.positive[i]),
      int(rows.site[i]),
      self._contrast,
    )
    return Record(
      image=image[..., None],
      labels=self.table.labels[index],
      mask=lungs[..., None],
      id=self.table.ids[index],
      patient=self.table.patients[index],
      site=self.table.sites[index],
    )


@functools.lru_cache(maxsize=4096)
def _draw_cached(
  size: int, seed: int, split: str, patient: int, i: int, opacity: bool, site: int, contrast: Real
) -> tuple[UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"]]:
  """Image `i` of a split and its lung mask.

  Small images are cached: a run reads its training images twice, for training and for evaluation.
  """
  image, lungs = draw(
    size,
    anatomy=_generator(seed, "anatomy", split, patient),
    shot=_generator(seed, "shot", split, i),
    opacity=opacity,
    site=site,
    contrast=contrast,
  )
  for plane in (image, lungs):
    plane.flags.writeable = False
  return image, lungs


def _check(name: str, value: Any, low: int | float, high: int | float) -> None:
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if not is_number or not low <= value <= high or (isinstance(low, int) and value != int(value)):
    raise UserError(f"config.data.options.{name}={value!r} is out of range; valid: {low} to {high}")


@dataclasses.dataclass
class _Rows:
  """Patient, site and class of every image of one split."""

  split: str
  patient: np.ndarray
  site: np.ndarray
  positive: np.ndarray

  def __init__(
    self, seed: int, split: str, n: int, sites: int, prevalence: int | float, shortcut: int | float
  ):
    self.split = split
    key = f"{seed}/{split}"
    images = 1 + (3 * hash_random.uniform(f"images/{key}", n)).astype(np.int64)
    self.patient = np.searchsorted(np.cumsum(images), np.arange(n), side="right")
    self.site = (sites * hash_random.uniform(f"site/{key}", n)).astype(np.int64)[self.patient]
    independent = hash_random.uniform(f"class/{key}", n) < prevalence
    from_site = hash_random.uniform(f"shortcut/{key}", n) < shortcut
    self.positive = np.where(from_site, self.site % 2 == 1, independent)


@functools.lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Float32[np.ndarray, "1 w"], Float32[np.ndarray, "h 1"]]:
  """Pixel centers in -1..1: x to the right as a row, y downwards as a column."""
  axis = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)
  return axis[None, :], axis[:, None]


def _noise(rng: np.random.Generator, cells: int, size: int, stretch: int = 1) -> Plane:
  """Smooth noise of about unit variance, with structures of `size / cells` pixels."""
  coarse = rng.standard_normal((cells, max(2, cells // stretch)), dtype=np.float32)
  return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def _clip(x: np.ndarray, low: Real, high: Real) -> np.ndarray:
  """`np.clip`, three times as fast on images as small as these."""
  return np.minimum(np.maximum(x, low), high)


def _edge(distance: np.ndarray, width: Real) -> np.ndarray:
  """Soft edge: 0 outside, 1 inside, linear over `width` around distance 0."""
  return _clip(distance / width + 0.5, 0, 1)


def _disc(x: np.ndarray, y: np.ndarray, cx: Real, cy: Real, rx: Real, ry: Real) -> np.ndarray:
  """Paraboloid: 1 at the center, 0 on the ellipse, negative outside."""
  return 1 - ((x - cx) * np.float32(1 / rx)) ** 2 - ((y - cy) * np.float32(1 / ry)) ** 2


def draw(
  size: int,
  anatomy: np.random.Generator,
  shot: np.random.Generator,
  *,
  opacity: bool,
  site: int = 0,
  contrast: Real = 1.0,
) -> tuple[UInt8[np.ndarray, "h w"], UInt8[np.ndarray, "h w"]]:
  """Draws one radiograph.

  Args:
    size: side in pixels.
    anatomy: random generator of the patient.
    shot: random generator of this image: pose, breath, disease, detector.
    opacity: whether the lungs have consolidations.
    site: index that sets contrast curve, marker and collimation.
    contrast: scale of the share of air that a consolidation replaces.

  Returns:
    The image (bright where absorption is high), and the lung mask: 1 inside, 0 outside.
  """
  x, y = _grid(size)
  a = anatomy.uniform(-1, 1, 24).astype(np.float32)
  s = shot.uniform(-1, 1, 24).astype(np.float32)
  side = np.abs(x)
  breath = 0.07 * s[0]  # moves the diaphragm, and the heart with it

  half = np.interp(
    y,
    [-1, -0.86, -0.72, -0.45, 0.1, 1],
    [0.26, 0.34, 0.8, 0.97, 0.84 + 0.07 * a[0], 0.9 + 0.08 * a[0]],
  )
  body = _edge(half.astype(np.float32) - side, 0.05)
  depth = np.sqrt(_clip(1 - (side / (1.1 + 0.1 * a[0])) ** 2, 0, 1)).astype(np.float32)
  wall = 0.64 + 0.06 * a[1]
  lungs = _lungs(x, y, a, breath, wall)
  solid = _heart(x, y, a, breath, 1 + 0.03 * s[1])
  air = lungs * (1 - 0.93 * solid)
  visible = air > 0.4  # lung as a radiologist would outline it
  air = air * (1 - (0.8 + 0.35 * s[2]) * _vessels(x, y, anatomy))
  if opacity:
    air = air * (1 - _consolidation(shot, size, lungs, contrast))

  absorbed = body * (0.5 + 0.42 * depth + 0.1 * _clip(y, 0, 1)) - 0.6 * air * depth
  absorbed = absorbed + 0.12 * solid * body + _bones(x, y, a, wall)
  trachea = _edge(0.05 - np.abs(x - 0.015), 0.04) * _edge(-0.22 - y, 0.2) * _edge(y + 0.98, 0.1)
  absorbed = absorbed - 0.13 * trachea
  if a[19] > 0:
    low = 0.28 + 0.05 * a[20]
    breast = np.maximum(_disc(x, y, -0.43, low, 0.36, 0.34), _disc(x, y, 0.43, low, 0.36, 0.34))
    absorbed = absorbed + _clip(breast * 2, 0, 1) * (0.06 + 0.1 * a[19]) * body
  stomach = _disc(x, y, 0.4, 0.74 + breath, 0.17, 0.09 + 0.03 * s[3])
  absorbed = absorbed - _clip(stomach * 2, 0, 1) * (0.1 + 0.1 * s[4]) * body

  absorbed, visible = _pose(absorbed, visible, s)
  return _detect(absorbed, shot, s, site), visible


def _lungs(x: np.ndarray, y: np.ndarray, a: np.ndarray, breath: Real, wall: Real) -> np.ndarray:
  """Both lungs, 0..1, bounded by an outer wall per row and the diaphragm's dome per column."""
  lungs = np.zeros((), np.float32)
  top = -0.78 + 0.05 * a[4]
  floors = (-1, 0.40 + 0.06 * a[2] + breath, 0.12), (1, 0.48 + 0.06 * a[3] + breath, 0.15)
  for sign, floor, inner in floors:
    t = _clip((y - top) / (floor + 0.25 - top), 0, 1)
    outer = inner + (wall - inner + 0.1) * (1 - (1 - t) ** 2.6) ** 0.62
    inside = sign * x - (inner - 0.05 * np.sin(np.pi * t))
    u = (sign * x - 0.36) / (wall - 0.3)
    dome = floor + (0.24 + 0.05 * a[5]) * u * u - y
    lungs = np.maximum(lungs, _edge(np.minimum(np.minimum(outer - sign * x, inside), dome), 0.035))
  return lungs


def _heart(x: np.ndarray, y: np.ndarray, a: np.ndarray, breath: Real, beat: Real) -> np.ndarray:
  """Heart and great vessels, 0..1, which displace air."""
  lower = 0.6 * breath
  dx, dy = x - (0.12 + 0.03 * a[6]), y - (0.25 + lower)
  along, across = 0.85 * dx + 0.53 * dy, 0.85 * dy - 0.53 * dx  # the apex points down and left
  left = _disc(along, across, 0, 0, (0.40 + 0.06 * a[7]) * beat, (0.28 + 0.04 * a[8]) * beat)
  right = _disc(x, y, -0.09, 0.2 + lower, 0.16 + 0.03 * a[9], 0.27)
  knob = _disc(x, y, 0.10, -0.27, 0.12 + 0.03 * a[10], 0.16)
  trunk = _disc(x, y, 0.01, -0.1, 0.15 + 0.02 * a[11], 1.3)
  return np.maximum(
    np.maximum(_edge(left - 0.05, 0.3), _edge(right, 0.4)),
    np.maximum(_edge(knob - 0.1, 1.0), _edge(trunk, 0.4)),
  )


def _vessels(x: np.ndarray, y: np.ndarray, anatomy: np.random.Generator) -> np.ndarray:
  """Share of air displaced by vessels: ridges of noise, denser towards the hila."""
  size = x.size
  hilum = np.maximum(_disc(x, y, -0.2, -0.02, 0.5, 0.62), _disc(x, y, 0.24, -0.05, 0.5, 0.62))
  ridge = _clip(1 - np.abs(_noise(anatomy, 18, size)) * 1.9, 0, 1)
  fine = _clip(1 - np.abs(_noise(anatomy, 34, size)) * 1.9, 0, 1)
  near = _clip(0.25 + 0.75 * hilum, 0, 1)
  return (ridge * 0.26 + fine * 0.12) * near + 0.28 * _clip(hilum * 1.5 - 0.75, 0, 1)


def _bones(x: np.ndarray, y: np.ndarray, a: np.ndarray, wall: Real) -> np.ndarray:
  """Ribs, spine and clavicles; ribs are a periodic function of a curved height coordinate."""
  side = np.abs(x)
  gap = 0.155 + 0.015 * a[12]
  cage = _edge(wall + 0.16 - side, 0.1) * _edge(0.62 - y, 0.2) * _edge(y + 0.86, 0.1)
  bent = y - 0.42 * side**1.6 + 0.3 * (side - 0.35) ** 2 + 0.03 * a[13]
  back = np.cos(bent * (2 * np.pi / gap))
  bent = y + 0.5 * side - 0.35 * side * side + 0.05 * a[14]
  front = np.cos(bent * (2 * np.pi / (gap * 1.25))) * _edge(side - 0.3, 0.2)
  ribs = _rib(back, 0.25) * (0.11 + 0.02 * a[15]) + _rib(front, 0.45) * 0.05
  vertebrae = 0.6 + 0.4 * _clip(np.cos((y + 0.04 * a[16]) * (2 * np.pi / 0.2)) * 1.5, -1, 1)
  spine = _edge(0.105 + 0.01 * a[17] - side, 0.04) * (0.10 + 0.05 * vertebrae)
  bent = y + 0.6 + 0.04 * a[18] + 0.14 * np.sin(2.6 * side + 0.1) - 0.11 * (1 - side)
  collar = _edge(0.035 - np.abs(bent), 0.03) * _edge(side - 0.09, 0.05) * _edge(0.85 - side, 0.1)
  return ribs * cage + spine + 0.1 * collar


def _rib(wave: np.ndarray, threshold: Real) -> np.ndarray:
  """A band where the wave is high, brighter at its borders, as cortical bone is a shell."""
  inside = _clip((wave - threshold) * 4, 0, 1)
  return inside * (1 - 0.45 * _clip((wave - threshold) * 1.6, 0, 1))


def _consolidation(
  shot: np.random.Generator, size: int, lungs: np.ndarray, contrast: Real
) -> np.ndarray:
  """Share of air replaced by fluid, 0..1: irregular blobs with a cloudy texture."""
  x, y = _grid(size)
  warp = 0.55 * _noise(shot, 7, size) + 0.22 * _noise(shot, 16, size)
  cloud = 0.8 + 0.2 * _noise(shot, 22, size)
  density = np.zeros((size, size), np.float32)
  for _ in range(1 + int(shot.integers(4))):
    sign = -1 if shot.random() < 0.55 else 1
    cx, cy = sign * shot.uniform(0.28, 0.56), shot.uniform(-0.45, 0.38)
    radius = shot.uniform(0.2, 0.42)
    blob = _disc(x, y, cx, cy, radius * shot.uniform(0.7, 1.1), radius) + warp
    soft = _clip(blob / shot.uniform(0.5, 1.1) + 0.1, 0, 1)
    density = np.maximum(density, soft * np.float32(shot.uniform(0.45, 0.95)))
  return _clip(density * cloud * np.float32(contrast), 0, 0.97) * lungs


def _pose(
  absorbed: np.ndarray, visible: np.ndarray, s: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Rotates, shifts and scales the patient in front of the detector."""
  size = absorbed.shape[0]
  turn, scale = 0.06 * s[5], 1 + 0.08 * s[6]
  cos, sin = float(np.cos(turn) / scale), float(np.sin(turn) / scale)
  c = size / 2
  dx, dy = c + 0.05 * size * float(s[7]), c + 0.05 * size * float(s[8])
  matrix = [cos, sin, c - cos * dx - sin * dy, -sin, cos, c + sin * dx - cos * dy]
  affine, lungs = Image.Transform.AFFINE, Image.fromarray(visible.astype(np.uint8))
  lungs = lungs.transform((size, size), affine, matrix, Image.Resampling.NEAREST)
  pad = size // 4  # edge padding, so that rotation brings in no empty corners
  matrix[2], matrix[5] = matrix[2] + pad, matrix[5] + pad
  padded = Image.fromarray(np.pad(absorbed, pad, mode="edge"))
  moved = padded.transform((size, size), affine, matrix, Image.Resampling.BILINEAR)
  return np.asarray(moved), np.asarray(lungs)


def _detect(
  absorbed: np.ndarray, shot: np.random.Generator, s: np.ndarray, site: int
) -> UInt8[np.ndarray, "h w"]:
  """Converts absorption to gray values: gradient, noise, contrast curve, collimation, marker."""
  size = absorbed.shape[0]
  x, y = _grid(size)
  # Multiples of irrational numbers give every site index settings of its own.
  curve, frame, style = (site * 0.618 + 0.2) % 1, (site * 0.414 + 0.1) % 1, site % 4
  level = absorbed + 0.09 * s[9] * x + 0.09 * s[10] * y  # anode heel, off-center beam
  grain = shot.standard_normal((size, size), dtype=np.float32)
  level = level + grain * (0.018 + 0.014 * s[11]) * (0.6 + 0.8 * _clip(absorbed, 0, 1.2))
  center = 0.52 + 0.11 * s[12]
  steep = (3.4 + 2.0 * (curve - 0.5)) * np.exp(0.28 * s[13])
  value = 1 / (1 + np.exp(-steep * (level - center)))
  value = value ** np.float32(np.exp(0.22 * s[14] + 0.5 * (curve - 0.5)))

  _marker(value, s, style, size)
  edge = 0.02 + 0.09 * frame + 0.03 * s[15]
  if s[16] < 0.6:  # collimated: nothing reaches the detector outside
    inside = np.minimum(1 + 0.02 * s[17] - edge - np.abs(x), 1 + 0.02 * s[18] - edge - np.abs(y))
    value = value * _edge(inside, 3 / size)
  return _clip(value * 255 + 0.5, 0, 255).astype(np.uint8)


def _marker(value: np.ndarray, s: np.ndarray, style: int, size: int) -> None:
  """Writes a lead letter beside a shoulder into `value`: plain, boxed, with a bar, or small."""
  letter = "R" if s[19] < 0 else "L"
  glyph = np.array([[c == "1" for c in row] for row in _GLYPHS[letter]])
  if style == 1:
    glyph = ~np.pad(glyph, 1)
  elif style == 2:
    glyph = np.vstack([glyph, np.zeros((1, 5), bool), np.ones((1, 5), bool)])
  cell = max(1, round(size / (150 if style == 3 else 90)))
  glyph = np.kron(glyph, np.ones((cell, cell), bool))
  h, w = glyph.shape
  # The patient's right is on the left of the image.
  column = (0.10 if letter == "R" else 0.82) + 0.03 * s[20]
  row = (0.09 if style != 2 else 0.22) + 0.03 * s[21]
  top, left = int(row * size), int(column * size)
  part = value[top : top + h, left : left + w]
  part[glyph[: part.shape[0], : part.shape[1]]] = 0.97
