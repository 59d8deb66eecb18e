"""A workdir as a real run leaves it, with numbers made up from smooth curves and seeded noise."""

from __future__ import annotations

import json
import math
import pathlib

import numpy as np
import pytest

from cxrjax.metrics.intervals import Interval
from cxrjax.report.run_writer import Writer

CLASSES = ("normal", "pneumonia")


def radiograph(seed: int, size: int = 224) -> np.ndarray:
  """A crude chest: body, two dark lungs, spine, ribs and noise. u8[size size]."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
  image = 0.12 + 0.55 * ((x / 0.92) ** 2 + (y / 1.25) ** 2 < 1)
  for side in (-1, 1):
    centre = side * (0.4 + 0.03 * rng.standard_normal())
    lung = ((x - centre) / 0.30) ** 2 + ((y + 0.05) / (0.62 + 0.05 * rng.random())) ** 2
    image -= 0.38 * np.clip(1.6 - 1.6 * lung, 0, 1)
  image += 0.06 * np.sin(18 * (y + 0.35 * x**2)) ** 8 * (np.abs(x) < 0.75)
  image += 0.22 * np.exp(-((x / 0.09) ** 2))
  image += 0.2 * np.exp(-((x - 0.1) ** 2 + (y - 0.35) ** 2) / 0.05)
  image += 0.02 * rng.standard_normal(image.shape)
  return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)


def make_workdir(
  path: pathlib.Path,
  *,
  steps: int = 3000,
  every: int = 10,
  evals: int = 6,
  name: str = "tfds:chest_xray_pneumonia",
  status: str = "finished",
  crop: int = 224,
  heads: int = 6,
) -> pathlib.Path:
  """Writes everything a page can show, through the Writer."""
  rng = np.random.default_rng(0)
  epochs, k = 30, 4096
  with Writer(path) as writer:
    (path / "config.json").write_text(
      json.dumps(
        {
          "task": "ssl",
          "seed": 0,
          "batch_size": 64,
          "duration": "30 epochs",
          "method": {"name": "cxrjax.methods.dino", "prototypes": k},
          "model": {"name": "cxrjax.models.vit", "variant": "S", "patch_size": 16},
          "data": {"name": name},
        }
      )
    )
    writer.facts(
      command=f"python -m cxrjax.main --config=configs/dino.py:paper --workdir={path}",
      started="2026-03-01T08:00:00+00:00",
      finished="2026-03-01T11:12:00+00:00",
      status=status,
      versions={"cxrjax": "0.1.0", "jax": "0.10.2", "flax": "0.12.8", "python": "3.11.2"},
      device={"kind": "NVIDIA H200", "count": 1, "platform": "gpu"},
      method="dino",
      model={"name": "ViT-S/16", "parameters": 21_665_664, "flops_per_image": 5.1e10},
      data={
        "train": {
          "name": name,
          "split": "train",
          "n": 17702,
          "patients": 9120,
          "classes": [],
          "fingerprint": "b9d1" * 16,
          "storage": "resident",
          "splits": {"train": 17702},
          "notes": ["Licence: CC BY 4.0."],
          "skipped": [["a/0001.png", "one gray level"], ["b/17.jpg", "truncated file"]],
        },
        "probe": {
          "name": name,
          "fingerprint": "77aa" * 16,
          "notes": ["Validation carved from train by patient."],
          "train": {
            "split": "train",
            "n": 4700,
            "patients": 2300,
            "class_counts": {"normal": 1214, "pneumonia": 3486},
          },
          "val": {
            "split": "val",
            "n": 532,
            "patients": 260,
            "class_counts": {"normal": 135, "pneumonia": 397},
          },
          "test": {
            "split": "test",
            "n": 624,
            "patients": 410,
            "class_counts": {"normal": 234, "pneumonia": 390},
          },
        },
      },
      steps=steps,
      epochs=epochs,
      batch_size=64,
      timing={
        "compile_s": 41.2,
        "images_per_s": 2612.4,
        "host_ms_per_image": 0.021,
        "total_s": 11520.0,
      },
      memory={"peak_rss_bytes": 3.21e9, "peak_device_bytes": 5.4e10},
    )
    for step in range(0, steps + 1, every):
      t = step / steps
      noise = rng.standard_normal(6)
      entropy = math.log(k) * (0.35 + 0.62 * math.exp(-4 * t)) + 0.05 * noise[0]
      kl = 0.9 + 2.2 * math.exp(-3 * t) + 0.08 * noise[1]
      writer.scalars(
        step,
        t * epochs,
        {
          "loss": entropy + kl if step != every * 7 else float("nan"),
          "teacher_entropy": entropy,
          "batch_entropy": math.log(k) * 0.93 + 0.03 * noise[2],
          "kl": kl,
          "feature_std": 0.25 + 0.6 * t**0.5 + 0.01 * noise[3],
          "effective_rank": 6 + 40 * t + noise[4],
          "grad_norm": 0.3 * math.exp(0.8 * noise[5]),
          "lr": 5e-4 * min(1, t * 10) * 0.5 * (1 + math.cos(math.pi * t)) + 1e-6,
          "weight_decay": 0.4 - 0.18 * (1 + math.cos(math.pi * t)),
          "momentum": 1 - 0.004 * 0.5 * (1 + math.cos(math.pi * t)),
          "teacher_temp": 0.04 + 0.03 * min(1, 3 * t),
          "images_per_s": 2600 + 40 * noise[0] - 900 * (step == 0),
        },
      )
    for i, encoder in enumerate(["random", *["trained"] * evals]):
      t = 0.0 if encoder == "random" else i / evals
      metrics = {}
      for head, base, gain in (
        ("knn1", 0.64, 0.17),
        ("knn5", 0.69, 0.21),
        ("knn20", 0.71, 0.22),
        ("linear", 0.84, 0.12),
      ):
        for measure, off in (
          ("auroc", 0),
          ("accuracy", -0.06),
          ("balanced_accuracy", -0.09),
          ("f1", -0.04),
        ):
          if head != "linear" and measure in ("f1", "balanced_accuracy"):
            continue
          value = base + off + gain * (1 - math.exp(-3 * t)) + (0.01 * rng.standard_normal())
          method = "DeLong" if measure == "auroc" else "Wilson"
          metrics[f"{head}/{measure}"] = Interval(
            value, value - 0.031, min(1.0, value + 0.026), 624, method
          )
      writer.results(int(steps * t), epochs * t, "probe", encoder, metrics)
    writer.results(
      0, 0.0, "probe", "floor", {"linear/auroc": Interval(0.901, 0.876, 0.924, 624, "DeLong")}
    )
    labels = np.eye(2, dtype=np.float32)[(np.arange(624) > 233).astype(int)]
    for encoder, apart in (("trained", 2.3), ("random", 1.3), ("floor", 1.8)):
      logit = rng.standard_normal(624) + apart * (labels[:, 1] - 0.6)
      positive = 1 / (1 + np.exp(-logit))
      writer.arrays(
        f"scores_probe_{encoder}",
        labels=labels,
        threshold=0.41,
        classes=CLASSES,
        linear=np.stack([1 - positive, positive], 1).astype(np.float32),
      )
    images = np.stack([radiograph(i, crop) for i in range(4)])
    side = crop * 3 // 7
    local = np.stack(
      [images[:, a : a + side, b : b + side] for a, b in rng.integers(0, crop - side, (8, 2))]
    )
    writer.arrays(
      "views",
      **{"source": images, "global": np.stack([images[:, ::-1], 255 - images]), "local": local},
    )
    y, x = np.mgrid[-1:1:14j, -1:1:14j]
    attn = np.stack(
      [
        [
          np.exp(-((x - rng.normal(0, 0.4)) ** 2 + (y - rng.normal(0, 0.4)) ** 2) / 0.08)
          for _ in range(heads)
        ]
        for _ in images
      ]
    ) + 0.05 * rng.random((14, 14))
    attn /= attn.sum((2, 3), keepdims=True)
    writer.arrays(
      "attention",
      image=images,
      attn=attn.astype(np.float32),
      label=[CLASSES[i % 2] for i in range(4)],
    )
    add_features(writer, images)
  return path


def add_features(writer: Writer, images: np.ndarray) -> None:
  """What the last part of a run says of its features."""
  rng = np.random.default_rng(1)
  of, site = np.arange(300) % 2, rng.integers(0, 3, 300)
  near = rng.integers(0, 4, (4, 5))
  writer.arrays(
    "features",
    xy=rng.standard_normal((300, 2)) + 2 * of[:, None],
    query=np.arange(4),
    similarity=np.sort(rng.random((4, 5)))[:, ::-1],
    image=images,
    near_image=images[near],
    names_label=CLASSES,
    group_label=of,
    near_label=near % 2,
    names_site=["north", "south", "west"],
    group_site=site,
    near_site=near % 3,
    patch_colours=rng.integers(0, 256, (4, 14, 14, 3), dtype=np.uint8),
  )
  share = {"low": 0.81, "high": 0.87, "n": 300, "method": "bootstrap over patients"}
  writer.facts(
    features={
      "evaluator": "probe",
      "train": 4000,
      "of_train": 4700,
      "test": 300,
      "of_test": 300,
      "neighbours": 5,
      "map": {"method": "PCA", "explains": [0.4, 0.1]},
      "patch_explains": [0.3, 0.2, 0.1],
      "shared": [
        {"by": "label", "value": 0.84, "chance": 0.61, **share},
        {"by": "site", "value": 0.84, "chance": 0.34, **share},
      ],
    }
  )


@pytest.fixture(name="make_workdir", scope="session")
def _make_workdir():
  return make_workdir
