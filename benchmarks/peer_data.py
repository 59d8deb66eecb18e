"""torchvision's side of `bench_data.py`; needs torch, torchvision and, for DICOM, pydicom.

Started by `bench_data.py --peer-python=...` with a JSON specification as its only argument.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time

import numpy as np
import torch
import torchvision
from PIL import Image
from sides import serve


def load(path):
  """An 8-bit gray PIL image."""
  if path.endswith(".dcm"):
    import pydicom

    return Image.fromarray((pydicom.dcmread(path).pixel_array >> 4).astype(np.uint8))
  image = Image.open(path)
  if image.mode.startswith("I;16"):
    image = Image.fromarray((np.asarray(image) >> 4).astype(np.uint8))
  return image.convert("L")


class Peer:
  """Its `DatasetFolder` and `DataLoader`, kept alive between turns."""

  def __init__(self, spec):
    self.spec, self.streams = spec, {}
    transform = torchvision.transforms.Compose(
      [
        torchvision.transforms.Resize((spec["size"], spec["size"])),
        torchvision.transforms.PILToTensor(),
      ]
    )
    forms = ("jpeg8", "png8", "png16", "dicom16")
    self.data = {
      f: torchvision.datasets.DatasetFolder(
        os.path.join(spec["folder"], f),
        loader=load,
        extensions=(".jpg", ".png", ".dcm"),
        transform=transform,
      )
      for f in forms
    }

  def answer(self, kind, form):
    data, batch = self.data[form], self.spec["batch"]
    if kind == "decode":
      start = time.perf_counter()
      for i in range(len(data)):
        data[i]
      return {"rate": len(data) / (time.perf_counter() - start)}
    loader = torch.utils.data.DataLoader(
      data,
      batch_size=batch,
      shuffle=True,
      num_workers=os.cpu_count(),
      drop_last=True,
      persistent_workers=True,
    )
    next(iter(loader))  # its workers are up
    epochs = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
    start = time.perf_counter()
    for _ in range(self.spec["steps"]):
      next(epochs)
    return {"rate": self.spec["steps"] * batch / (time.perf_counter() - start)}


if __name__ == "__main__":
  given = json.loads(sys.argv[1])
  serve({"torch": torch.__version__, "torchvision": torchvision.__version__}, Peer(given).answer)
