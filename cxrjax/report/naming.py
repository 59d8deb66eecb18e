"""Display names on the page: the run, its method, model, data and machine."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cxrjax.report.html import format
from cxrjax.report.html.element import el
from cxrjax.report.run_files import FLOOR, RANDOM, TRAINED, Run, lookup, number

DISCLAIMER = (
  "Research use only. Not a medical device; not for diagnosis or any decision about a patient."
)
STYLES = {TRAINED: "s1", RANDOM: "s2", FLOOR: "s3"}
ENDED = ("failed", "stopped", "diverged")
PLAIN = ("segment", "classify")  # methods that the objective already names
_METHODS = {
  "segment": "Lung segmentation",
  "classify": "Classification",
  "mean_teacher": "Mean teacher",
  "bke": "BKE",
}
_DEPTHS = ("ResNet", "DenseNet")  # named by their number of layers
_MODELS = {"vit": "ViT", "resnet": "ResNet", "densenet": "DenseNet", "vitae": "ViTAEv2"}


def title(run: Run) -> str:
  """`DINO · ViT-S/16 on chest_xray_pneumonia`; larger pools by their number of data sets."""
  name = " · ".join(part for part in (method_name(run), model_name(run)) if part)
  sources = str(run.fact("data", "train", "name") or "").split(" + ")
  names = [p.rstrip("/").rpartition("/")[2].rpartition(":")[2] for p in sources]
  data = " + ".join(names) if len(names) < 3 else f"{len(names)} data sets"
  return f"{name} on {data}" if name and data else name or run.workdir.name or "A run"


def method(run: Run) -> str:
  """Module name of the method: `dino`."""
  return str(run.fact("method") or "").rpartition(".")[2]


def method_name(run: Run) -> str:
  """Display name of the method: `DINO`."""
  name = method(run)
  return _METHODS.get(name, name.upper() if 0 < len(name) <= 5 else name)


def supervised(run: Run) -> bool:
  """Whether the method learns from labels or masks."""
  return run.fact("learns_from") in ("labels", "masks")


def model_name(run: Run) -> str:
  """`ViT-S/16`, from a dotted name, a variant and the config's patch size."""
  name = str(run.fact("model", "name") or "")
  if "." not in name:
    return name
  last = name.removesuffix(".Model").rpartition(".")[2]
  name = _MODELS.get(last, last)
  variant = run.fact("model", "variant") or lookup(run.config, "model", "variant")
  variant = variant or lookup(run.config, "model", "depth") if name in _DEPTHS else variant
  patch = number(lookup(run.config, "model", "patch_size"))
  return (
    name
    + (f"-{variant}" if variant else "")
    + (f"/{patch:.0f}" if math.isfinite(patch) and name == "ViT" else "")
  )


def source_name(name: Any) -> str:
  """Name of a source or of a pool; long paths are shortened to their kind and end."""
  return " + ".join(map(_short, str(name or "").split(" + ")))


def _short(name: str) -> str:
  if len(name) <= 48:
    return name
  kind, _, path = name.rpartition(":")
  last = path.rstrip("/").rpartition("/")[2][-40:]
  return f"{kind}:…/{last}" if kind else f"…/{last}"


def device_name(run: Run) -> str:
  """`8 x NVIDIA H200`, from the fact `device`, a name or a mapping."""
  device = run.fact("device")
  if isinstance(device, str):
    return device
  if not isinstance(device, Mapping):
    return ""
  name = next((str(device[k]) for k in ("kind", "name", "platform") if device.get(k)), "")
  name = name.upper() if name.lower() in ("cpu", "gpu", "tpu") else name
  n = number(device.get("devices", device.get("count")))
  return f"{n:.0f} \N{MULTIPLICATION SIGN} {name}" if name and n > 1 else name


def status(run: Run) -> tuple[str, str]:
  """`("finished" | "running" | one of ENDED | "unknown", why)`."""
  text = str(run.fact("status") or "unknown")
  kind, _, reason = text.partition(":")
  kind = kind.strip().lower()
  if kind in ("finished", "running", "unknown", *ENDED):
    return kind, reason.strip()
  return "stopped", text


def images_named(evaluator: str) -> str:
  """Name of an evaluator's images, such as `Test images`; else the evaluator's own name."""
  return {"test": "Test images", "validation": "Validation images"}.get(evaluator, evaluator)


def judged_on(evaluator: str, n: int | None, where: Any) -> list[Any]:
  """`On 624 test images of tfds:x (test),`, as the beginning of a sentence.

  Args:
    evaluator: name of the evaluator.
    n: number of images.
    where: facts of these images.
  """
  kind = {"test": "test image", "validation": "validation image"}.get(evaluator, "radiograph")
  text: list[Any] = ["On ", el("b", format.count(n, kind) or f"{kind}s")]
  if name := lookup(where, "name"):
    text += [" of ", el("span", source_name(name), cls="name", title=str(name))]
  if split := lookup(where, "split"):
    text.append(f" ({split})")
  return [*text, ","]


def judged_once(run: Run, evaluator: str) -> str:
  """A sentence on the checkpoint that was tested; empty where none was chosen."""
  step = run.fact("chosen", "step")
  if evaluator not in (run.fact("chosen", "evaluators") or []) or step is None:
    return ""
  return (
    f" Evaluated once, with the checkpoint of step {format.count(step)}, the best on validation "
    f"({format.measure(str(run.fact('chosen', 'by')))})."
  )


def last_step(run: Run) -> int | None:
  """The last step that has metrics."""
  return max((int(c.step[-1]) for c in run.curves.values() if len(c.step)), default=None)


def total_seconds(run: Run) -> float | None:
  """Duration of the run in seconds: `timing.total_s`, or from start to end."""
  total = number(run.fact("timing", "total_s"))
  if math.isfinite(total):
    return total
  try:
    start, end = (datetime.datetime.fromisoformat(run.fact(k)) for k in ("started", "finished"))
    return (end - start).total_seconds()
  except (TypeError, ValueError):
    return None


def time_axis(step: np.ndarray, epoch: np.ndarray) -> tuple[np.ndarray, str]:
  """Epochs where all are known and the run has at least one, steps otherwise."""
  if len(epoch) and np.isfinite(epoch).all() and epoch.max() >= 1:
    return epoch, "epoch"
  return step, "step"
