"""`python -m cxrjax.predict --workdir=RUN PATHS... --out=DIR`: a finished run's predictions.

PATHS are radiographs (PNG, JPEG, TIFF, BMP, DICOM), folders and zips of them. In DIR:

- `predictions.csv`: one row an image: `id`, its path below the folder given; for every class
  `probability_NAME`, calibrated as the run's test evaluation has it; `called`, the class that is
  called by the run's threshold (`called_NAME`, 1 or 0, of findings); `lung_share` with masks;
  `note`, what to know of how the image was read, empty for most.
  `--format=parquet` adds `predictions.parquet`.
- `embeddings.npy` with `--embed`: float32, row i is row i of the table (also in the Parquet).
- `masks/ID.png` with `--lungs=zoo:lungs` or a run of `configs/segment.py`, or when `--workdir` is
  one: lungs white, the rest black (1 bit), at the image's own size.
- `overlays/ID.png` with `--overlays[=METHOD]`: what the network looks at over the image, relative
  to the map's maximum; of the class that is called (of findings, the likeliest).
- `skipped.csv`: images that cannot be used, files that are no images, and why. They do not stop
  the others.
- `predictions.json`: network, temperature, thresholds, counts.

Stopped in any way, the same command goes on after the last batch that was written; with more images
in the folder, it adds these. For research, not for diagnosis.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from cxrjax.config.instantiate import trust
from cxrjax.core import command
from cxrjax.core.errors import UserError, suggest
from cxrjax.core.memory import keep_compiled, keep_freed_memory
from cxrjax.core.text import identifier

FORMATS = ("csv", "parquet")
AUTO = "auto"
SHOWN = 10  # most skipped images listed on the terminal

FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_string("workdir", None, "Of a finished run.", flag_values=FLAGS)
_OUT = flags.DEFINE_string("out", None, "The folder to write.", flag_values=FLAGS)
_EMBED = flags.DEFINE_boolean(
  "embed",
  False,
  "The encoder's features as well; for a pretrained run, only these.",
  flag_values=FLAGS,
)
_LUNGS = flags.DEFINE_string(
  "lungs",
  None,
  "zoo:lungs, or the workdir of a run of configs/segment.py, for lung masks.",
  flag_values=FLAGS,
)
_OVERLAYS = flags.DEFINE_string(
  "overlays",
  "",
  "Draw maps over the images: gradcam, gradcam++, occlusion, attention or rollout; "
  "alone, gradcam of a classifier and attention of a pretrained transformer.",
  flag_values=FLAGS,
)
_FORMAT = flags.DEFINE_string("format", "csv", "csv or parquet.", flag_values=FLAGS)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images per batch.", flag_values=FLAGS)
_TRUST = flags.DEFINE_list(
  "trust", [], "Your own modules that the runs may name.", flag_values=FLAGS
)
_OVERWRITE = flags.DEFINE_boolean(
  "overwrite", False, "Start over, whatever is in --out.", flag_values=FLAGS
)


def predict(
  workdir: str,
  paths: Sequence[str],
  out: str,
  *,
  embed: bool = False,
  lungs: str | None = None,
  overlays: str = "",
  kind: str = "csv",
  batch_size: int = 64,
  overwrite: bool = False,
  progress: bool = True,
  say: Callable[[str], None] = command.say,
) -> int:
  """Predicts a folder of images; see the module's docstring.

  Args:
    workdir: of a finished run.
    paths: of images, folders and zips.
    out: the folder to write.
    embed: add features.
    lungs: workdir of a finished segmentation run.
    overlays: a method of maps, or `AUTO`; "" for none.
    kind: one of `FORMATS`.
    batch_size: images per dispatch.
    overwrite: start over.
    progress: show a bar on stderr.
    say: receives the lines for the user.

  Returns:
    The number of predicted images, including those of earlier calls.

  Raises:
    UserError: no such run or images, another network's predictions in `out`, or no usable image.
  """
  from cxrjax.inference import networks
  from cxrjax.inference.inputs import Files
  from cxrjax.inference.pipeline import PredictionTask
  from cxrjax.inference.prediction_log import Journal
  from cxrjax.training.workdir import locked

  _check_options(kind, batch_size)
  network = networks.load(workdir, "--workdir")
  segmenter = networks.segmenter(lungs, "--lungs") if lungs else None
  if overlays == AUTO:
    overlays = "gradcam" if network.kind == "classifier" else "attention"
  task = PredictionTask(network, embed=embed, lungs=segmenter, overlays=overlays)
  images = Files(paths, without=out)
  for line in (*describe(network, workdir), *images.notes):
    say(line)
  folder, about = pathlib.Path(out).expanduser(), _describe(network, segmenter, embed, overlays)
  try:
    with locked(folder, "--out"), contextlib.closing(Journal(folder, about, overwrite)) as journal:
      done, seconds, notes = _extend(journal, task, images, batch_size, progress, say)
      journal.finish(kind == "parquet", run=network.name, calibrated=bool(network.judged))
  except OSError as error:
    raise UserError(f"--out={out} cannot be written: {error.strerror or error}") from error
  for line in (*summary(journal, done, seconds), *(f"note: {note}" for note in notes)):
    say(line)
  return journal.rows


def _check_options(kind: str, batch_size: int) -> None:
  if kind not in FORMATS:
    raise UserError(f"--format={kind!r} is not an option{suggest(kind, FORMATS)}")
  if batch_size < 1:
    raise UserError(f"--batch_size={batch_size} must be at least 1")


def _describe(network: Any, segmenter: Any, embed: bool, overlays: str) -> dict[str, Any]:
  """What determines the predictions, which a folder that is continued must share."""
  return network.describe() | {
    "fingerprint": network.fingerprint,
    "embed": embed,
    "lungs": segmenter.fingerprint if segmenter else None,
    "overlays": overlays,
  }


def _extend(
  journal: Any, task: Any, images: Any, batch_size: int, progress: bool, say: Callable[[str], None]
) -> tuple[int, float, list[str]]:
  """Adds the predictions of the images that a journal lacks.

  Returns:
    The number of these images, the seconds taken, and notes on how images were read.
  """
  from cxrjax.data.images import summarize_notes
  from cxrjax.inference.pipeline import progress_bar
  from cxrjax.inference.predictions import Predictions

  began = time.perf_counter()
  non_images = tuple(other for other in images.others if identifier(other[0]) not in journal.done)
  if non_images:
    network = task.network
    journal.add(Predictions((), network.classes, network.exclusive, skipped=non_images))
  rows = [i for i, name in enumerate(images.ids) if identifier(name) not in journal.done]
  done_before = len(images.ids) - len(rows)
  if done_before:
    say(f"{done_before:,} of {len(images.ids):,} images were already done")
  notes = []
  with progress_bar(len(images.ids), done_before, shown=progress) as bar:
    for batch in task.run(images, rows, batch_size):
      journal.add(batch)
      notes += [
        (identifier(name), note)
        for name, image_notes in zip(batch.ids, batch.notes, strict=True)
        for note in image_notes
      ]
      bar.update(len(batch) + len(batch.skipped))
  return len(rows), time.perf_counter() - began, summarize_notes(notes)


def describe(network: Any, workdir: str) -> list[str]:
  """Lines that describe the network and its calibration."""
  headline = f"{network.kind} of {workdir}, step {network.run.step}, {network.image_size} px"
  members = network.members
  if members:
    headline = f"ensemble of {len(members)} ({network.kind}) of {workdir}, {network.image_size} px"
  if network.kind != "classifier":
    return [headline]
  if not network.judged:
    called = (
      "the most likely one is predicted" if network.exclusive else "findings are positive from 0.5"
    )
    return [headline, f"no test evaluation: probabilities are not calibrated, {called}"]
  temperature = ", ".join(
    f"{t:.3g}" for member in members or (network,) for t in member.temperature
  )
  if network.thresholds is None:
    called = "the most likely class is predicted"
  else:
    names = network.classes[-1:] if network.exclusive else network.classes
    thresholds = network.thresholds[-len(names) :]
    called = (
      "called from "
      + ", ".join(f"{name} {value:.3g}" for name, value in zip(names, thresholds, strict=True))
      + " on"
    )
  return [headline, f"calibrated on validation images (temperature {temperature}); {called}"]


def summary(journal: Any, done: int, seconds: float) -> list[str]:
  """Lines on the throughput, the output and the skipped images."""
  from cxrjax.inference.prediction_log import SKIPPED, TABLE

  location = f"{journal.rows:,} rows in {journal.folder / TABLE}"
  rate = float(f"{done / max(seconds, 1e-9):.3g}")
  lines = [
    f"{done:,} images in {seconds:.1f} s ({rate:,g} images/s); {location}"
    if done
    else f"nothing was left to do; {location}"
  ]
  if journal.skipped:
    lines.append(f"{journal.skipped:,} could not be used, see {journal.folder / SKIPPED}:")
    lines += [f"  {name}: {why}" for name, why in journal.reasons(SHOWN)]
    if journal.skipped > SHOWN:
      lines.append(f"  and {journal.skipped - SHOWN:,} more")
  return lines


def main(argv: list[str]) -> int:
  """Runs the command; returns the exit status."""
  if "--help" in argv[1:]:
    sys.stdout.write(f"{__doc__}\n{FLAGS.main_module_help() or FLAGS.get_help()}\n")
    return 0
  FLAGS.set_gnu_getopt(True)  # flags may follow paths
  argv = ["--overlays=" + AUTO if word == "--overlays" else word for word in argv]
  try:
    paths = FLAGS(argv)[1:]
  except flags.Error as error:
    raise UserError(str(error).splitlines()[0]) from error
  if not _WORKDIR.value or not _OUT.value or not paths:
    raise UserError("--workdir=RUN, --out=DIR and paths of images are needed; see --help")
  trust(_TRUST.value)
  keep_freed_memory()
  keep_compiled()
  rows = predict(
    _WORKDIR.value,
    paths,
    _OUT.value,
    embed=_EMBED.value,
    lungs=_LUNGS.value,
    overlays=_OVERLAYS.value,
    kind=_FORMAT.value,
    batch_size=_BATCH_SIZE.value,
    overwrite=_OVERWRITE.value,
  )
  return 0 if rows else 1


def run() -> None:
  """Entry point of the program; see `command.run`."""
  try:
    command.run(lambda: main(sys.argv))
  except KeyboardInterrupt:
    sys.stderr.write("stopped; the same command resumes\n")
    sys.exit(130)


if __name__ == "__main__":
  run()
