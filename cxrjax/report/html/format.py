"""Formats numbers, durations and names for readers."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Iterable
from typing import Any

ENCODERS = {"trained": "Trained", "random": "Before training", "floor": "Thumbnail floor"}
MASK_ENCODERS = {"floor": "Mean training mask"}  # names that differ for segmentation
MEASURES = {
  "auroc": "AUROC",
  "auprc": "AUPRC",
  "accuracy": "Accuracy",
  "balanced_accuracy": "Balanced accuracy",
  "f1": "F1",
  "sensitivity": "Sensitivity",
  "specificity": "Specificity",
  "hm": "Harmonic mean (HM)",
  "brier": "Brier score",
  "ece": "Calibration error (ECE)",
  "nll": "Log loss",
  "log_loss": "Log loss",
  "rank": "Effective rank",
  "dice": "Dice",
  "iou": "IoU",
  "assd": "Average surface distance",
  "hd95": "95 % Hausdorff distance",
}
VARIANTS = {  # suffixes of a measure that are not classes
  "uncalibrated": "uncalibrated",
  "prevalence": "at the estimated prevalence",
}
LOWER_IS_BETTER = ("assd", "hd95", "brier", "ece", "nll")  # lower is better
HEADS = {"linear": "Linear probe", "floor": "Thumbnail ridge", "pixels": "Thumbnail ridge"}


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A result with its 95 % interval; NaN where unknown, and why it is undefined."""

  value: float
  low: float = math.nan
  high: float = math.nan
  n: int | None = None
  method: str = ""
  undefined: str = ""


def estimate(e: Estimate, dash: str = "\N{EN DASH}") -> str:
  """`0.873 (0.842–0.901)`; without a finite interval `0.873`; `n/a` where undefined."""
  if not math.isfinite(e.value):
    return "n/a"
  bounds = interval(e, dash)
  return f"{decimal(e.value)} ({bounds})" if bounds else decimal(e.value)


def interval(e: Estimate, dash: str = "\N{EN DASH}") -> str:
  """`0.842–0.901`; empty where not finite."""
  if math.isfinite(e.value) and math.isfinite(e.low) and math.isfinite(e.high):
    return f"{decimal(e.low)}{dash}{decimal(e.high)}"
  return ""


def decimal(x: float | int) -> str:
  """Three decimals for scores; four digits for larger numbers."""
  if not math.isfinite(x):
    return "n/a"
  return f"{x:.3f}" if abs(x) < 10 else f"{x:,.4g}" if abs(x) < 1e4 else f"{x:,.0f}"


def short(x: float | int) -> str:
  """Four significant digits, for axes and hover text."""
  if not math.isfinite(x):
    return "not finite"
  if x == 0:
    return "0"
  if 1e-3 <= abs(x) < 1e6:
    text = f"{x:,.4g}" if abs(x) < 1e4 else f"{x:,.0f}"
    return text.replace("-", "\N{MINUS SIGN}")
  mantissa, exponent = f"{x:.3e}".split("e")
  mantissa = mantissa.rstrip("0").rstrip(".")
  return f"{mantissa}e{int(exponent)}".replace("-", "\N{MINUS SIGN}")


def count(n: Any, one: str = "", many: str = "") -> str:
  """`17,702 radiographs`; an empty string where `n` is not a number."""
  if isinstance(n, bool) or not isinstance(n, int | float) or not math.isfinite(n):
    return ""
  word = one if round(n) == 1 else many or (one + "s" if one else "")
  return f"{n:,.0f} {word}".strip()


def compact(n: Any, unit: str = "") -> str:
  """`21.7 M`, `4.6 GFLOP`; an empty string where `n` is not a number."""
  if isinstance(n, bool) or not isinstance(n, int | float) or not math.isfinite(n):
    return ""
  for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
    if abs(n) >= size:
      return f"{n / size:.3g} {prefix}{unit}"
  return f"{n:.3g} {unit}".strip()


def duration(seconds: Any) -> str:
  """`3 h 12 min`, `4 min 10 s`, `0.8 s`; an empty string where unknown."""
  if isinstance(seconds, bool) or not isinstance(seconds, int | float):
    return ""
  if not math.isfinite(seconds) or seconds < 0:
    return ""
  if seconds < 10:
    return f"{seconds:.1f} s"
  total = round(seconds)
  if total < 60:
    return f"{total} s"
  if total < 3600:
    return f"{total // 60} min {total % 60} s" if total < 600 else f"{round(total / 60)} min"
  minutes = round(total / 60)
  if minutes < 48 * 60:
    return f"{minutes // 60} h {minutes % 60} min"
  return f"{minutes / 60 / 24:.1f} days"


def join_words(items: Iterable[Any]) -> str:
  """`a, b and c`."""
  texts = list(map(str, items))
  return " and ".join(filter(None, [", ".join(texts[:-1]), *texts[-1:]]))


def encoder(name: str, metrics: Collection[str]) -> str:
  """Display name of an encoder; the floor of segmentation metrics is the mean training mask."""
  names = MASK_ENCODERS if "dice" in metrics else {}
  return names.get(name, ENCODERS.get(name, name))


def split(name: str) -> tuple[str, str, str]:
  """Splits a metric into head, measure and class: `knn5/auroc/normal`, or `auroc/normal`."""
  prefix, _, remainder = name.partition("/")
  if not remainder or prefix in MEASURES:
    return "", prefix, remainder
  return prefix, *(remainder.partition("/")[::2])


def of_class(name: str) -> bool:
  """Whether a metric is of a single class."""
  return split(name)[2] not in ("", *VARIANTS)


def head(name: str) -> str:
  """Display name of a head on the features: `knn5` is `kNN, k = 5`."""
  if match := re.fullmatch(r"knn_?(\d+)", name):
    return f"kNN, k = {match[1]}"
  if match := re.fullmatch(r"whitened_?(\d+)", name):
    return f"kNN on whitened features, k = {match[1]}"
  return HEADS.get(name, name.replace("_", " ").capitalize())


def measure(name: str) -> str:
  """`balanced_accuracy` is `Balanced accuracy`; a class, or a variant, follows after a comma."""
  base, *qualifiers = name.split("/")
  return ", ".join(
    [
      MEASURES.get(base, base.replace("_", " ").capitalize()),
      *(VARIANTS.get(qualifier, qualifier) for qualifier in qualifiers),
    ]
  )


def title(name: str) -> str:
  """Full display name of a metric: `knn5/auroc` is `kNN, k = 5: AUROC`."""
  prefix, metric, variant = split(name)
  text = measure(f"{metric}/{variant}" if variant else metric)
  return f"{head(prefix)}: {text}" if prefix else text
