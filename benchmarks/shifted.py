"""Judges classifiers on validation films as another hospital might take them.

    python benchmarks/shifted.py --workdir=runs/a,runs/b

A recipe that is chosen on films like those it learnt from need not be the one that holds on others.
So each run judges its own validation films once more with other exposure, contrast, size in the
frame, collimation, sharpness and noise, and with one of these drawn for every film. Test films take
no part.
"""

import csv
import sys

import numpy as np
from absl import app, flags
from PIL import Image, ImageFilter

import cxrjax
from cxrjax.data import load_images, open_source
from cxrjax.evals import classification_metrics

SIZE = 256  # pixels a side of the films that are changed
WORKDIR = flags.DEFINE_list("workdir", None, "Workdirs of fine-tuned runs.", required=True)


def picture(x):
  """Gray levels in 0..1 as an image."""
  return Image.fromarray(np.round(255 * x).astype(np.uint8))


def levels(image):
  """An image as gray levels in 0..1."""
  return np.asarray(image) / np.float32(255)


def curve(power):
  """Gray levels in 0..1 to a power."""
  return lambda x, rng: x**power


def smaller(x, rng):
  """Four fifths of the frame, black around it."""
  inner = levels(picture(x).resize((SIZE * 4 // 5,) * 2))
  found = np.zeros_like(x)
  top, left = rng.integers(0, SIZE - len(inner), 2, endpoint=True)
  found[top : top + len(inner), left : left + len(inner)] = inner
  return found


def larger(x, rng):
  """The middle four fifths."""
  edge = SIZE // 10
  return levels(picture(x[edge:-edge, edge:-edge]).resize((SIZE, SIZE)))


def collimated(x, rng):
  """Black borders of up to an eighth."""
  found, (top, bottom, left, right) = np.zeros_like(x), rng.integers(1, SIZE // 8, 4)
  found[top:-bottom, left:-right] = x[top:-bottom, left:-right]
  return found


SHIFTS = {
  "darker": curve(1.6),
  "lighter": curve(1 / 1.6),
  "flatter": lambda x, rng: 0.2 + 0.6 * x,
  "smaller": smaller,
  "larger": larger,
  "collimated": collimated,
  "softer": lambda x, rng: levels(picture(x).filter(ImageFilter.BoxBlur(3))),
  "noisier": lambda x, rng: np.clip(x + 0.05 * rng.standard_normal(x.shape), 0, 1),
}


def shifted(films, name):
  """Films u8[n s s 1] after a shift, or each after one that is drawn for it."""
  rng, found = np.random.default_rng(0), []
  for film in films[..., 0]:
    shift = SHIFTS[rng.choice([*SHIFTS])] if name == "any of them" else SHIFTS.get(name)
    x = film / np.float32(255)
    found.append(film if shift is None else np.round(255 * shift(x, rng)).astype(np.uint8))
  return found


def main(argv):
  del argv
  out = csv.writer(sys.stdout, lineterminator="\n")
  out.writerow(("run", "films", "auroc", "low", "high", "accuracy"))
  for workdir in WORKDIR.value:
    network = cxrjax.load(workdir)
    data = {
      k: v
      for k, v in network.run.config["evals"]["validation"]["data"].items()
      if k not in ("train", "test", "subset", "labelled")
    }
    name, split = data.pop("name"), data.pop("val")
    films = load_images(open_source(name, split=split, **data), SIZE, progress=False)
    for shift in ("as they are", *SHIFTS, "any of them"):
      p = network.probabilities(shifted(films.pixels, shift)).astype(np.float64)
      found = classification_metrics.evaluate(
        "", p, films.labels, films.patients, network.classes, network.exclusive
      )
      auroc = found["auroc"]
      out.writerow(
        (
          workdir,
          shift,
          *(f"{v:.4f}" for v in (auroc.value, auroc.low, auroc.high, found["accuracy"].value)),
        )
      )
      sys.stdout.flush()


if __name__ == "__main__":
  app.run(main)
