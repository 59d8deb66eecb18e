"""What an audit found, as numbers for the page and rows for the tables."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from cxrjax.audit import polarity
from cxrjax.audit.images import Pair, Part
from cxrjax.data.images import told
from cxrjax.data.splits import leakage
from cxrjax.evals import thumbnail_baseline
from cxrjax.metrics import roc
from cxrjax.metrics.intervals import Interval

SHOWN = 24  # images of a kind on the page
LISTED = 200  # of anything in run.json; the CSV files have all
LEAST = 20  # images with and without a sex, view or site, for a floor of its own
SITES = 6
ATTRIBUTES = {"site": "sites", "view": "views", "sex": "sexes"}  # as `Table` calls them

Place = tuple[int, int]  # part and row


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
  """Per part, for its good images: agreement with what all have in common, and kinds.

  `flat` images show nothing, `inverted` ones show bones black, `unlike` ones are unlike the rest.
  """

  parts: Sequence[Part]
  agreement: list[Float32[np.ndarray, "_"]]
  flat: list[Bool[np.ndarray, "_"]]
  inverted: list[Bool[np.ndarray, "_"]]
  unlike: list[Bool[np.ndarray, "_"]]


def look(parts: Sequence[Part]) -> Found:
  """Looks at every image by itself."""
  described = [polarity.describe(p.images) for p in parts]
  agree = polarity.agreement(*(x for x, _ in described))
  flat = [spread < polarity.FLAT for _, spread in described]
  inverted = [(r <= polarity.INVERTED) & ~f for r, f in zip(agree, flat, strict=True)]
  unlike = [(np.abs(r) < polarity.UNLIKE) & ~f for r, f in zip(agree, flat, strict=True)]
  return Found(parts, agree, flat, inverted, unlike)


def strange(found: Found) -> dict[str, list[Place]]:
  """Images to show of every kind; the clearest first."""
  result = {}
  for kind in ("inverted", "flat", "unlike"):
    places = [
      (abs(float(r)) if kind == "unlike" else float(r), (k, int(part.good[i])))
      for k, part in enumerate(found.parts)
      for i, r in enumerate(found.agreement[k])
      if getattr(found, kind)[k][i]
    ]
    result[kind] = [place for _, place in sorted(places)[:SHOWN]]
  return result


# Floors.


@dataclasses.dataclass(frozen=True)
class Floor:
  """How well ridge regression on thumbnails tells something.

  `kind` is label, sex, view, site or source; `how` says which images it was fitted to.
  """

  source: str
  kind: str
  name: str
  positive: int
  how: str
  auroc: Interval


def floors(parts: Sequence[Part], owners: Sequence[Sequence[str]], folds: int) -> list[Floor]:
  """The floor of every label, sex, view and site of each source, and of the sources themselves."""
  x = [thumbnail_baseline.thumbnails(p.images) for p in parts]
  own = [[o[i] for i in p.good.tolist()] for p, o in zip(parts, owners, strict=True)]
  found = []
  for number in sorted({p.number for p in parts}):
    mine = [k for k, p in enumerate(parts) if p.number == number]
    targets = _targets([parts[k] for k in mine])
    if targets:
      found += _floor(
        parts[mine[0]].info.name,
        targets,
        [parts[k].split for k in mine],
        [x[k] for k in mine],
        [own[k] for k in mine],
        folds,
      )
  sources = sorted({p.number for p in parts})
  if len(sources) > 1:
    names = {p.number: p.info.name for p in parts}
    of = np.concatenate([np.full(len(p.good), p.number) for p in parts])
    targets = [("source", names[s], (of == s).astype(np.float32)) for s in sources]
    found += _floor(
      "all sources", targets, ["all"], [np.concatenate(x)], [list(itertools.chain(*own))], folds
    )
  return found


def _targets(parts: Sequence[Part]) -> list[tuple[str, str, np.ndarray]]:
  """What could be told from a source's images: kind, name and 1, 0 or NaN for each."""
  tables = [p.images.table for p in parts]
  info = parts[0].info
  labels = np.concatenate([t.labels for t in tables])
  columns = list(enumerate(info.classes))
  if info.exclusive and len(columns) == 2:
    columns = columns[1:]  # the other is its mirror image
  found = [("label", name, labels[:, c]) for c, name in columns]
  for kind, rows in ATTRIBUTES.items():
    values = list(itertools.chain(*(getattr(t, rows) for t in tables)))
    count = Counter(v for v in values if v).most_common()
    if kind == "sex":
      count = [c for c in count if c[0] == "F"]
    known = np.array([bool(v) for v in values])
    for value, n in count[:SITES]:
      if n >= LEAST and known.sum() - n >= LEAST:
        y = np.array([v == value for v in values], np.float32)
        found.append((kind, value, np.where(known, y, np.nan).astype(np.float32)))
        if len(count) == 2:  # the other is its mirror image
          break
  return found


def _floor(
  source: str,
  targets: Sequence[tuple[str, str, np.ndarray]],
  names: Sequence[str],
  x: Sequence[np.ndarray],
  own: Sequence[Sequence[str]],
  folds: int,
) -> list[Floor]:
  """On the test split where there is one to fit to and one to test on, else cross-validated."""
  of = np.concatenate([np.full(len(v), k) for k, v in enumerate(x)])
  features, owners = np.concatenate(x), np.array(list(itertools.chain(*own)))
  y = np.stack([t[2] for t in targets], 1)
  tested = of == names.index("test") if "test" in names else np.zeros(len(of), bool)
  if tested.any() and not tested.all():
    used, how = tested, "fitted to the other splits, tested on test"
    scores = thumbnail_baseline.ridge(features[~tested], y[~tested], features[tested])
  else:
    used, how = np.ones(len(of), bool), f"{folds} folds, patients and duplicates together"
    scores = thumbnail_baseline.held_out(features, y, owners.tolist(), folds)
  found = []
  for c, (kind, name, _) in enumerate(targets):
    truth = y[used, c]
    # A class without both values where it was fitted has no scores.
    truth = np.where(np.isfinite(scores[:, c]), truth, np.nan)
    found.append(
      Floor(
        source,
        kind,
        name,
        int((truth == 1).sum()),
        how,
        roc.auroc(np.nan_to_num(scores[:, c]), truth, owners[used]),
      )
    )
  return found


# Tables.


def number_patients(parts: Sequence[Part]) -> dict[str, str]:
  """`p1`, `p2`, ... in the order of the images: names of patients are not written down."""
  keys = dict.fromkeys(p for part in parts for p in part.patients if p)
  return {patient: f"p{k + 1}" for k, patient in enumerate(keys)}


def pair_facts(parts: Sequence[Part], pair: Pair, copy: float) -> dict[str, Any]:
  """One near-duplicate for the page."""

  def side(place: Place) -> dict[str, Any]:
    part, row = parts[place[0]], place[1]
    return {"part": part.name, "id": part.table.ids[row], "labels": _said(part, row)}

  return {
    "a": side(pair.a),
    "b": side(pair.b),
    "r": pair.r,
    "first": pair.first,
    "copy": pair.r >= copy,
    "same_patient": pair.same_patient,
    "differ": list(pair.differ),
    "across": pair.a[0] != pair.b[0],
  }


def chosen(parts: Sequence[Part], pairs: Sequence[Pair], count: int) -> list[Pair]:
  """Pairs to show: those between splits first, but not only; the most alike of each."""
  between = [p for p in pairs if p.a[0] != p.b[0]]
  inside = [p for p in pairs if p.a[0] == p.b[0]]
  few = min(len(inside), count // 2)
  between = between[: count - few]
  return between + inside[: count - len(between)]


def pair_rows(parts: Sequence[Part], pairs: Sequence[Pair], copy: float) -> Iterator[Sequence[Any]]:
  yield (
    "kind",
    "r",
    "first",
    "across",
    "same_patient",
    "labels_differ",
    "a_source",
    "a_split",
    "a_id",
    "b_source",
    "b_split",
    "b_id",
  )
  for p in pairs:
    a, b = parts[p.a[0]], parts[p.b[0]]
    yield (
      "copy" if p.r >= copy else "same patient?",
      f"{p.r:.4f}",
      f"{p.first:.4f}",
      _across(a, b),
      {True: "yes", False: "no", None: ""}[p.same_patient],
      ";".join(p.differ),
      a.info.name,
      a.split,
      a.table.ids[p.a[1]],
      b.info.name,
      b.split,
      b.table.ids[p.b[1]],
    )


def _across(a: Part, b: Part) -> str:
  return "" if a is b else "splits" if a.number == b.number else "sources"


def patient_rows(
  parts: Sequence[Part], crossing: Mapping[str, Sequence[Place]], numbers: Mapping[str, str]
) -> Iterator[Sequence[Any]]:
  yield "patient", "source", "split", "id"
  for patient, places in crossing.items():
    for k, row in places:
      yield numbers[patient], parts[k].info.name, parts[k].split, parts[k].table.ids[row]


def image_rows(
  parts: Sequence[Part], found: Found, groups: Sequence[np.ndarray], numbers: Mapping[str, str]
) -> Iterator[Sequence[Any]]:
  """Every image, also those that are bad or were left out by the source."""
  size = Counter(itertools.chain(*(g.tolist() for g in groups)))
  yield (
    "source",
    "split",
    "id",
    "patient",
    "labels",
    "site",
    "view",
    "sex",
    "age",
    "status",
    "reason",
    "agreement",
    "copies",
  )
  left_out = set()
  for k, part in enumerate(parts):
    t, good = part.table, {int(row): i for i, row in enumerate(part.good)}
    notes: dict[int, list[str]] = {}
    for note, rows in part.notes.items():
      for row in rows:
        notes.setdefault(row, []).append(note)
    for row, name in enumerate(t.ids):
      i = good.get(row)
      kinds = (
        []
        if i is None
        else [kind for kind in ("flat", "inverted", "unlike") if getattr(found, kind)[k][i]]
      )
      group = int(groups[k][row])
      yield (
        part.info.name,
        part.split,
        name,
        numbers.get(part.patients[row], ""),
        _said(part, row),
        t.sites[row],
        t.views[row],
        t.sexes[row],
        "" if np.isnan(t.ages[row]) else f"{t.ages[row]:g}",
        "unreadable" if i is None else " ".join(kinds) or "good",
        part.bad.get(row) or "; ".join(notes.get(row, ())),
        "" if i is None else f"{found.agreement[k][i]:.3f}",
        f"g{group}" if size[group] > 1 else "",
      )
    for name, reason in part.info.skipped:
      if (part.number, name) not in left_out:
        left_out.add((part.number, name))
        yield (part.info.name, "", name, *[""] * 6, "left out", reason, "", "")


def floor_rows(found: Sequence[Floor]) -> Iterator[Sequence[Any]]:
  yield (
    "source",
    "kind",
    "name",
    "images",
    "positive",
    "auroc",
    "low",
    "high",
    "interval",
    "how",
    "undefined",
  )
  for f in found:
    values = [
      f"{v:.4f}" if np.isfinite(v) else "" for v in (f.auroc.value, f.auroc.low, f.auroc.high)
    ]
    yield (
      f.source,
      f.kind,
      f.name,
      f.auroc.n,
      f.positive,
      *values,
      f.auroc.method,
      f.how,
      f.auroc.undefined,
    )


# Facts.


def facts(
  parts: Sequence[Part],
  pairs: Sequence[Pair],
  copy: float,
  found: Found,
  crossing: Mapping[str, Sequence[Place]],
  numbers: Mapping[str, str],
  floors: Sequence[Floor],
) -> dict[str, Any]:
  """Everything the page says, as plain values."""
  kinds = ("inverted", "flat", "unlike")
  between: Counter[tuple[int, int, bool]] = Counter()
  for p in pairs:
    between[min(p.a[0], p.b[0]), max(p.a[0], p.b[0]), p.r >= copy] += 1
  places = strange(found)
  crossed = Counter(tuple(sorted({k for k, _ in v})) for v in crossing.values())
  bad = [(k, row) for k, p in enumerate(parts) for row in sorted(p.bad)]
  left_out = {
    (p.number, name): (p.info.name, name, reason) for p in parts for name, reason in p.info.skipped
  }
  return {
    "parts": [
      {
        "name": p.name,
        "source": p.info.name,
        "split": p.split,
        "n": len(p.table),
        "patients": len({x for x in p.patients if x}),
        "unknown": sum(not x for x in p.patients),
        "tells_patients": p.tells_patients,
        "unreadable": len(p.bad),
        "fingerprint": p.info.fingerprint,
        "notes": [
          *p.info.notes,
          *told((p.table.ids[row], note) for note, rows in p.notes.items() for row in rows),
        ],
        **{kind: int(getattr(found, kind)[k].sum()) for kind in kinds},
        "labels": _label_counts(p),
        "attributes": _attributes(p),
      }
      for k, p in enumerate(parts)
    ],
    "left_out": len(left_out),
    "pairs": {
      "counts": [
        {
          "a": parts[i].name,
          "b": parts[j].name,
          "copies": between[i, j, True],
          "same": between[i, j, False],
        }
        for i, j in itertools.combinations_with_replacement(range(len(parts)), 2)
      ],
      "copies": sum(p.r >= copy for p in pairs),
      "same": sum(p.r < copy for p in pairs),
      "across": sum(p.a[0] != p.b[0] and p.r >= copy for p in pairs),
      "across_same": sum(p.a[0] != p.b[0] and p.r < copy for p in pairs),
      "other_patient": sum(p.same_patient is False for p in pairs),
      "other_label": sum(bool(p.differ) and p.r >= copy for p in pairs),
    },
    "patients": {
      "said": said_of_patients(parts, len(crossing)),
      "crossing": len(crossing),
      "images": sum(map(len, crossing.values())),
      "between": [
        {"parts": [parts[k].name for k in ks], "patients": n} for ks, n in crossed.most_common()
      ],
      "listed": [
        {
          "patient": numbers[p],
          "images": [[parts[k].name, parts[k].table.ids[row]] for k, row in v[:12]],
          "n": len(v),
        }
        for p, v in list(crossing.items())[:20]
      ],
    },
    "images": {
      "bad": [
        [parts[k].name, parts[k].table.ids[row], parts[k].bad[row]] for k, row in bad[:LISTED]
      ],
      "left_out": [list(v) for v in list(left_out.values())[:LISTED]],
      **{
        kind: [
          [
            parts[k].name,
            parts[k].table.ids[row],
            float(found.agreement[k][np.searchsorted(parts[k].good, row)]),
          ]
          for k, row in places[kind]
        ]
        for kind in kinds
      },
    },
    "floor": [
      {
        "source": f.source,
        "kind": f.kind,
        "name": f.name,
        "positive": f.positive,
        "how": f.how,
        "value": f.auroc.value,
        "low": f.auroc.low,
        "high": f.auroc.high,
        "n": f.auroc.n,
        "method": f.auroc.method,
        "undefined": f.auroc.undefined,
      }
      for f in floors
    ],
  }


def said_of_patients(parts: Sequence[Part], crossing: int) -> str:
  """Whether a patient is in two splits, as far as that is known."""
  if len(parts) < 2:
    return "there is one split, which no patient can leave"
  is_ = "patient is" if crossing == 1 else "patients are"
  of: dict[int, list[Part]] = {}
  for part in parts:
    of.setdefault(part.number, []).append(part)
  return leakage.said(
    crossing,
    [
      leakage.known([*itertools.chain(*(p.patients for p in own))], own[0].info)
      for own in of.values()
    ],
    [f"images of {own[0].info.name}" if len(of) > 1 else "images" for own in of.values()],
    some=f"{crossing} {is_} in several splits",
    none="no patient is in two splits",
    whether="whether a patient is in two splits",
  )


def _label_counts(part: Part) -> list[dict[str, Any]]:
  y = part.table.labels
  return [
    {
      "name": c,
      "present": int((y[:, i] == 1).sum()),
      "absent": int((y[:, i] == 0).sum()),
      "unknown": int(np.isnan(y[:, i]).sum()),
    }
    for i, c in enumerate(part.info.classes)
  ]


def _attributes(part: Part) -> dict[str, Any]:
  t = part.table
  found: dict[str, Any] = {}
  for kind, rows in ATTRIBUTES.items():
    count = Counter(getattr(t, rows))
    unknown = count.pop("", 0)
    if count:
      found[kind] = {
        "counts": dict(count.most_common(LISTED)),
        "unknown": unknown,
        "kinds": len(count),
      }
  ages = t.ages[~np.isnan(t.ages)]
  if len(ages):
    low, middle, high = np.percentile(ages, (25, 50, 75)).tolist()
    found["age"] = {
      "median": middle,
      "quartiles": [low, high],
      "least": float(ages.min()),
      "most": float(ages.max()),
      "unknown": int(np.isnan(t.ages).sum()),
    }
  return found


def summary(facts: Mapping[str, Any]) -> list[str]:
  """What was found, in a few lines for the terminal."""
  parts, pairs = facts["parts"], facts["pairs"]

  def total(key: str) -> int:
    return sum(p[key] for p in parts)

  return [
    f"copies    {pairs['copies']} pairs show the same radiograph, {pairs['across']} of them "
    "between splits or sources",
    f"same      {pairs['same']} more pairs probably show the same patient, {pairs['across_same']} "
    "of them between",
    f"patients  {facts['patients']['said']}",
    f"images    {total('n')}: {total('unreadable')} unreadable, {facts['left_out']} left out, "
    f"{total('flat')} blank, {total('inverted')} inverted, {total('unlike')} unlike the others",
  ]


def _said(part: Part, row: int) -> str:
  """The classes of an image, in words."""
  y = part.table.labels[row]
  if part.info.classes and np.isnan(y).all():
    return "unknown"
  return " + ".join(c for c, v in zip(part.info.classes, y, strict=True) if v == 1)
