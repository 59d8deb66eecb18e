"""Runs and radiographs to predict with."""

import csv
import io
import pathlib

import dicoms
import jax
import jax.numpy as jnp
import made_up
import numpy as np
from PIL import Image

from cxrjax import predict
from cxrjax.core.durations import Clock
from cxrjax.methods import segment, simsiam
from cxrjax.methods.base import split_stats
from cxrjax.models import vit
from cxrjax.training.restore import Restored

CLOCK = Clock(10, 1.0, 4)
NETWORK = vit.Model(variant="Nu", width=32, depth=1, heads=2, patch_size=8, image_size=32)


def encoder_run():
  """A finished pretraining of made-up weights."""
  params, stats = split_stats(made_up.of(NETWORK))
  tree = jax.tree.map(jnp.asarray, {"encoder": params})
  config = {
    "views": {"mean": 0.5, "std": 0.25, "global_size": 32},
    "model": {"name": "made up"},
    "method": {"name": "cxrjax.methods.simsiam"},
    "data": {"size": 48, "fit": "squash"},
  }
  return Restored(
    pathlib.Path("runs/pre"),
    config,
    {"data": {"train": {}}},
    7,
    simsiam.Method(encoder=NETWORK, clock=CLOCK),
    tree,
    {"stats": stats},
  )


def lung_run():
  """A finished segmentation of made-up weights."""
  method = segment.Method(encoder=NETWORK, clock=CLOCK, decoder="linear", components=2)
  spec = {"global_mask": jax.ShapeDtypeStruct((1, 2, 32, 32, 1), jnp.float32)}
  params, state = jax.eval_shape(lambda: method.init(jax.random.key(0), spec))
  params, state = (jax.tree.map(jnp.asarray, made_up.weights(t)) for t in (params, state))
  config = encoder_run().config | {"method": {"name": "cxrjax.methods.segment"}}
  facts = {"data": {"train": {}}}
  return Restored(pathlib.Path("runs/lungs"), config, facts, 7, method, params, state)


def command(tuned, *paths, out, **options):
  """Runs it; returns its lines."""
  said = []
  predict.predict(
    str(tuned), [str(p) for p in paths], str(out), progress=False, say=said.append, **options
  )
  return said


def table(folder):
  with open(folder / "predictions.csv", newline="") as opened:
    return list(csv.DictReader(opened))


def written(folder, image):
  """The same radiograph in many formats."""
  folder.mkdir(exist_ok=True)
  gray = Image.fromarray(image)
  gray.save(folder / "gray.png")
  gray.convert("RGB").save(folder / "rgb.png")
  gray.save(folder / "größe — 影像.bmp")
  wide = image.astype(np.uint16) * 257
  Image.fromarray(wide).save(folder / "wide.tif")
  window = {"WindowCenter": 32768, "WindowWidth": 65536}
  (folder / "plain.dcm").write_bytes(dicoms.dicom(wide, **window))
  (folder / "inverted.dcm").write_bytes(
    dicoms.dicom(65535 - wide, PhotometricInterpretation="MONOCHROME1", **window)
  )


def bad_files(folder):
  """Files that cannot be used, and why."""
  folder.mkdir()
  (folder / "text.png").write_text("not an image")
  (folder / "empty.jpg").write_bytes(b"")
  buffer = io.BytesIO()
  noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
  Image.fromarray(noise).save(buffer, "JPEG")
  (folder / "cut.jpg").write_bytes(buffer.getvalue()[:900])
  Image.new("L", (40, 40), 7).save(folder / "blank.png")
  Image.new("L", (8, 8)).save(folder / "tiny.png")
  (folder / "ct.dcm").write_bytes(dicoms.dicom(noise, Modality="CT"))
  return {
    "text.png": "not a PNG",
    "empty.jpg": "0 bytes",
    "cut.jpg": "cut short",
    "blank.png": "blank",
    "tiny.png": "8 x 8",
    "ct.dcm": "modality CT",
  }
