"""The peer of `bench_predict.py`: a timm network, PIL and a DataLoader, as one writes it by hand.

Started by `bench_predict.py --peer-python` with the exported weights as its only argument. Needs
torch, timm and safetensors.
"""

from __future__ import annotations

import csv
import json
import os
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np
import sides
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file


class Films(torch.utils.data.Dataset):
  """Gray squares of all files of a folder, normalised."""

  def __init__(self, folder, size, mean, std):
    self.files = sorted(pathlib.Path(folder).iterdir())
    self.size, self.mean, self.std = size, mean, std

  def __len__(self):
    return len(self.files)

  def __getitem__(self, index):
    image = Image.open(self.files[index])
    if image.mode.startswith("I"):
      pixels = np.array(image).astype(np.float32)
      low, high = np.percentile(pixels, (0.5, 99.5))
      image = Image.fromarray(np.clip((pixels - low) * 255 / (high - low), 0, 255).astype(np.uint8))
    image = image.convert("L").resize((self.size, self.size), Image.BICUBIC)
    x = (np.asarray(image, np.float32) / 255 - self.mean) / self.std
    return torch.from_numpy(x[None])


def cpu():
  """Seconds of all threads, and of workers that have ended."""
  used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return sum(u.ru_utime + u.ru_stime for u in used)


def main(path):
  with safe_open(path, framework="pt") as opened:
    about = json.loads(opened.metadata()["cxrjax"])
  network = timm.create_model(about["timm"]["model"], **about["timm"]["args"])
  network.load_state_dict(load_file(path), strict=True)
  network.eval()
  temperature = about.get("temperature", [1.0])[0]

  def answer(kind, folder):
    del kind
    begun, used = time.perf_counter(), cpu()
    films = Films(folder, about["image_size"], about["mean"], about["std"])
    loader = torch.utils.data.DataLoader(
      films, batch_size=64, num_workers=len(os.sched_getaffinity(0))
    )
    rows = []
    with torch.inference_mode():
      for x in loader:
        rows += torch.softmax(network(x) / temperature, 1).tolist()
    names = [file.name for file in films.files]
    with tempfile.TemporaryFile("w") as opened:
      csv.writer(opened).writerows([name, *row] for name, row in zip(names, rows, strict=True))
    return {
      "seconds": time.perf_counter() - begun,
      "cpu": cpu() - used,
      "n": len(rows),
      "found": {name: row[-1] for name, row in zip(names, rows, strict=True)},
    }

  sides.serve({"side": "timm", "torch": torch.__version__, "timm": timm.__version__}, answer)


if __name__ == "__main__":
  main(sys.argv[1])
