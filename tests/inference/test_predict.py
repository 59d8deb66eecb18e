"""`python -m cxrjax.predict`: folders of predictions that grow, stop and go on."""

import contextlib
import csv
import errno
import json
import os
import shutil
import subprocess
import sys

import dicoms
import numpy as np
import pyarrow.parquet
import pytest
from films import bad_files, command, table
from PIL import Image
from small import REPOSITORY

import cxrjax
from cxrjax import predict
from cxrjax.core import tables
from cxrjax.core.errors import UserError
from cxrjax.inference import pipeline, prediction_log


def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not_been(tuned, films, tmp_path, monkeypatch):
  folder, truth = films
  (tmp_path / "in").mkdir()
  for file in sorted(folder.rglob("*.png")):
    (tmp_path / "in" / f"{file.parent.name}{file.name}").write_bytes(file.read_bytes())
  (tmp_path / "in" / "a04.png").write_text("bad")
  options = {"embed": True, "batch_size": 4, "kind": "parquet"}
  command(tuned, tmp_path / "in", out=tmp_path / "whole", **options)
  real, calls = prediction_log.Journal.add, []

  def add(self, predictions):
    calls.append(len(predictions))
    if len(calls) == 3:  # half a batch reaches the disk
      self._write = lambda **facts: (_ for _ in ()).throw(KeyboardInterrupt)
    real(self, predictions)

  out = tmp_path / "out"
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(prediction_log.Journal, "add", add)
    command(tuned, tmp_path / "in", out=out, **options)
  state = json.loads((out / "predictions.json").read_text())
  assert state["status"] == "running" and state["rows"] == 7 and state["skipped"] == 1
  assert (out / "predictions.csv").stat().st_size > state["bytes"]["predictions.csv"]
  with open(out / "predictions.csv", "ab") as opened:
    opened.write(b"a12.png,0.1")  # and a part of a row
  said = command(tuned, tmp_path / "in", out=out, **options)
  assert f"8 of {len(truth)} images were already done" in said
  for name in ("predictions.csv", "embeddings.npy", "skipped.csv"):
    assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
  assert json.loads((out / "predictions.json").read_text())["status"] == "finished"

  # Once more there is nothing to do; more images are added.
  assert any(
    "nothing was left to do" in line for line in command(tuned, tmp_path / "in", out=out, **options)
  )
  (tmp_path / "in" / "z.png").write_bytes((folder / "a" / "00.png").read_bytes())
  command(tuned, tmp_path / "in", out=out, **options)
  rows, embeddings = table(out), np.load(out / "embeddings.npy")
  assert len(rows) == len(truth) == len(embeddings) and rows[-1]["id"] == "z.png"
  np.testing.assert_allclose(embeddings[-1], embeddings[0], atol=1e-5)
  found = pyarrow.parquet.read_table(out / "predictions.parquet").to_pydict()
  assert found["id"] == [row["id"] for row in rows]
  assert found["called"] == [row["called"] for row in rows]
  np.testing.assert_array_equal(
    np.float32(found["probability_opacity"]), np.float32([r["probability_opacity"] for r in rows])
  )
  np.testing.assert_array_equal(np.float32(found["embedding"]), embeddings)


def test_files_that_are_no_images_are_listed_once(tuned, films, tmp_path):
  folder, _ = films
  (tmp_path / "in" / "deep").mkdir(parents=True)
  (tmp_path / "in" / "1.png").write_bytes((folder / "a" / "00.png").read_bytes())
  (tmp_path / "in" / "photograph").write_bytes((folder / "a" / "02.png").read_bytes())
  for name in ("list.csv", "deep/notes.txt", "deep/more.txt", "unnamed"):
    (tmp_path / "in" / name).write_text("text")
  out = tmp_path / "in" / "out"  # what it writes itself is not among them
  for _ in range(2):
    said = "\n".join(command(tuned, tmp_path / "in", out=out))
    assert "not images: 2 .txt (such as deep/more.txt), a document" in said
    assert (
      "not images: 1 without extension (such as unnamed), its first bytes are not those of an image"
      in said
    )
    assert [row["id"] for row in table(out)] == ["1.png", "photograph"]
    with open(out / "skipped.csv", newline="") as opened:
      left = {row["id"]: row["reason"] for row in csv.DictReader(opened)}
    assert left == {
      "deep/more.txt": "not an image: a document",
      "deep/notes.txt": "not an image: a document",
      "list.csv": "not an image: a table",
      "unnamed": "not an image: its first bytes are not those of an image",
    }


def test_raw_detector_values_are_told(tuned, tmp_path):
  noise = np.random.default_rng(0).integers(0, 4096, (2, 64, 64), np.uint16)
  (tmp_path / "in").mkdir()
  for k in range(2):
    kind = {"PresentationIntentType": "FOR PROCESSING"} if k else {}
    (tmp_path / "in" / f"{k}.dcm").write_bytes(dicoms.dicom(noise[k], **kind))
  said = command(tuned, tmp_path / "in", out=tmp_path / "out")
  assert any(line.startswith("note: ") and "FOR PROCESSING" in line for line in said)
  assert ["FOR PROCESSING" in row["note"] for row in table(tmp_path / "out")] == [False, True]


def test_a_folder_of_other_predictions_is_left_alone(tuned, films, tmp_path):
  folder, _ = films
  command(tuned, folder / "a", out=tmp_path / "out")
  before = (tmp_path / "out" / "predictions.csv").read_bytes()
  with pytest.raises(UserError, match=r"made with other settings \(embed\).*--overwrite"):
    command(tuned, folder / "a", out=tmp_path / "out", embed=True)
  assert (tmp_path / "out" / "predictions.csv").read_bytes() == before
  command(tuned, folder / "a", out=tmp_path / "out", embed=True, overwrite=True)
  assert len(np.load(tmp_path / "out" / "embeddings.npy")) == len(table(tmp_path / "out"))
  (tmp_path / "out" / "predictions.csv").write_text("id\n")
  with pytest.raises(UserError, match="has been truncated or changed"):
    command(tuned, folder / "a", out=tmp_path / "out", embed=True)
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "predictions.csv").write_text("mine")
  with pytest.raises(UserError, match="was not written by this program"):
    command(tuned, folder / "a", out=tmp_path / "mine")
  assert (tmp_path / "mine" / "predictions.csv").read_text() == "mine"


def test_masks_and_overlays_are_pictures(tuned, films, runs, tmp_path):
  folder, _ = films
  (tmp_path / "in").mkdir()
  Image.open(folder / "a" / "00.png").resize((90, 50)).save(tmp_path / "in" / "x.png")
  command(
    tuned,
    tmp_path / "in",
    folder / "a" / "00.png",
    out=tmp_path / "out",
    lungs="runs/lungs",
    overlays=predict.AUTO,
  )
  rows, out = table(tmp_path / "out"), tmp_path / "out"
  mask = np.asarray(Image.open(out / "masks" / prediction_log.file_of(f"{tmp_path}/in/x.png")))
  assert mask.shape == (50, 90) and mask.dtype == bool and mask.any() and not mask.all()
  assert float(rows[0]["lung_share"]) == pytest.approx((mask > 0).mean(), abs=1e-6)
  assert (
    len(list((out / "masks").rglob("*.png"))) == 2 == len(list((out / "overlays").rglob("*.png")))
  )
  drawn = Image.open(out / "overlays" / prediction_log.file_of(f"{tmp_path}/in/x.png"))
  assert drawn.size == (90, 50) and drawn.mode == "RGB"
  assert np.ptp(np.asarray(drawn).astype(int), axis=2).max() > 50  # colours over gray
  assert json.loads((out / "predictions.json").read_text())["about"]["overlays"] == "gradcam"


def test_runs_that_are_no_classifier(tuned, films, runs, tmp_path):
  folder, _ = films
  with pytest.raises(UserError, match=r"run of simsiam, which has no classes to predict; .*embed"):
    command("runs/pre", folder, out=tmp_path / "x")
  with pytest.raises(UserError, match="is a run of simsiam, which has no classes; fine-tune"):
    cxrjax.load("runs/pre").probabilities(folder)
  with pytest.raises(UserError, match="overlays='gradcam' needs a classifier"):
    command("runs/pre", folder, out=tmp_path / "x", embed=True, overlays="gradcam")
  with pytest.raises(
    UserError, match="--lungs='runs/pre' is a run of simsiam, which does not predict"
  ):
    command(tuned, folder, out=tmp_path / "x", lungs="runs/pre")
  assert not (tmp_path / "x").exists()
  command("runs/pre", folder / "a", out=tmp_path / "x", embed=True)
  assert list(table(tmp_path / "x")[0]) == ["id", "note"]
  assert np.load(tmp_path / "x" / "embeddings.npy").shape[1] == 32
  command("runs/lungs", folder / "a", out=tmp_path / "y")
  assert list(table(tmp_path / "y")[0]) == ["id", "lung_share", "note"]


def test_the_program(tuned, films, tmp_path):
  """As its user has it: in a process of its own, with flags between and after paths."""
  reasons = bad_files(tmp_path / "bad")
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "cxrjax.predict",
      f"--workdir={tuned}",
      films[0] / "a",
      f"--out={tmp_path}/x",
      str(tmp_path / "bad"),
      "--format",
      "parquet",
    ],
    cwd=REPOSITORY,
    text=True,
    capture_output=True,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
  )
  count = len(list((films[0] / "a").iterdir()))
  assert done.returncode == 0, done.stderr
  assert f"{count} rows in {tmp_path}/x/predictions.csv" in done.stdout
  assert f"{len(reasons)} could not be used" in done.stdout
  assert len(pyarrow.parquet.read_table(tmp_path / "x" / "predictions.parquet")) == count


def test_the_exit_status_is_1_where_all_images_are_bad(tuned, tmp_path):
  bad_files(tmp_path / "bad")
  flags = ["predict", f"--workdir={tuned}", str(tmp_path / "bad"), f"--out={tmp_path}/y"]
  assert predict.main(flags) == 1


def test_names_that_are_hard_to_write(tuned, films, tmp_path):
  """They come back as they are from both tables, in UTF-8; bytes that are no text escaped.

  No cell of a table is one that a spreadsheet would run.
  """
  folder = os.fsencode(tmp_path / "in")
  os.mkdir(folder)
  names = {
    b"\xff\xfe.png": "\\xff\\xfe.png",
    b"\\xff\\xfe.png": "\\\\xff\\\\xfe.png",
    b"a\\b.png": "a\\b.png",
    "\u00e9\u2028.png".encode(): "\u00e9\u2028.png",
    **{
      n: n.decode()
      for n in (
        b"new\nline.png",
        b"a\rb.png",
        b"\r\n.png",
        b" x .png",
        b'quo"te,comma.png',
        b"=cmd|x.png",
        b"-1+2.png",
        b"'@a.png",
        b"esc\x1b[31m.png",
      )
    },
  }
  for name in names:
    with open(folder + b"/" + name, "wb") as opened:
      opened.write((films[0] / "a" / "00.png").read_bytes())
  with open(folder + b"/=bad\xff\r.png", "wb") as opened:
    opened.write(b"bad")
  for said in (0, len(names) + 1):  # also when they are read back
    lines = command(
      tuned, tmp_path / "in", out=tmp_path / "out", lungs="runs/lungs", kind="parquet"
    )
    assert any("nothing was left to do" in line for line in lines) == bool(said)
  with open(tmp_path / "out" / "predictions.csv", newline="", encoding="utf-8") as opened:
    ids = [row["id"] for row in csv.DictReader(opened)]
  assert sorted(map(tables.plain, ids)) == sorted(names.values())
  assert not any(name.startswith(("=", "-", "@")) for name in ids) and "'=cmd|x.png" in ids
  with open(tmp_path / "out" / "skipped.csv", newline="", encoding="utf-8") as opened:
    assert [row["id"] for row in csv.DictReader(opened)] == ["'=bad\\xff\r.png"]
  found = pyarrow.parquet.read_table(tmp_path / "out" / "predictions.parquet").to_pydict()["id"]
  assert sorted(found) == sorted(names.values())
  assert sorted(os.listdir(os.fsencode(tmp_path / "out" / "masks"))) == sorted(
    name + b".png" for name in names
  )


def test_names_that_are_too_long_for_a_picture(tuned, films, tmp_path):
  """With the picture's ending a name may have more bytes than a file system takes, or a path."""
  image = (films[0] / "a" / "00.png").read_bytes()
  names = [
    "x" * 251 + ".png",
    "x" * 250 + "y.png",
    "\u00e9" * 125 + ".png",
    "ok.png",
    "/".join(["d" * 250] * 13) + "/deep.png",
  ]
  for name in names:
    at = os.open(tmp_path, os.O_RDONLY)
    for part in ("in/" + name).split("/")[:-1]:  # a longer path than one call may be given
      with contextlib.suppress(FileExistsError):
        os.mkdir(part, dir_fd=at)
      at, above = os.open(part, os.O_RDONLY, dir_fd=at), at
      os.close(above)
    with open(os.open(name.rpartition("/")[2], os.O_CREAT | os.O_WRONLY, dir_fd=at), "wb") as file:
      file.write(image)
    os.close(at)
  command(tuned, tmp_path / "in", out=tmp_path / "out", lungs="runs/lungs")
  assert sorted(row["id"] for row in table(tmp_path / "out")) == sorted(names)
  pictures = [p for p in (tmp_path / "out" / "masks").rglob("*") if p.is_file()]
  assert len(pictures) == len(names) and (tmp_path / "out" / "masks" / "ok.png.png") in pictures
  assert all(len(os.fsencode(p.name)) <= 255 and p.suffix == ".png" for p in pictures)


@pytest.mark.parametrize("moment", ["compiling", "the first picture", "the first row", "the end"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_stopped_at_any_moment_the_same_command_goes_on(
  tuned, films, tmp_path, monkeypatch, moment, overwrite
):
  """Before the first batch is written, too; and it never takes others' predictions for its own."""
  out, options = tmp_path / "out", {"batch_size": 16, "overwrite": overwrite}
  if overwrite:  # over others, of another network
    command(tuned, films[0] / "b", out=out, embed=True, kind="parquet")
  place, name = {
    "compiling": (pipeline.PredictionTask, "run"),
    "the first picture": (prediction_log, "_draw"),
    "the first row": (prediction_log.tables, "write_rows"),
    "the end": (prediction_log.Journal, "finish"),
  }[moment]
  if moment == "the first picture":
    options["lungs"] = "runs/lungs"

  def stop(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with (
    monkeypatch.context() as patch,
    pytest.raises(UserError, match=r"--out=.* cannot be written: No space left on device"),
  ):
    patch.setattr(place, name, stop)
    command(tuned, films[0], out=out, **options)
  about = json.loads((out / "predictions.json").read_text())
  assert about["status"] == "running" and about["about"]["embed"] is False
  said = command(tuned, films[0], out=out, **(options | {"overwrite": False}))
  assert len(table(out)) == len(films[1])
  assert any("were already done" in line for line in said) == (moment == "the end")
  assert not (out / "embeddings.npy").exists() and not (out / "predictions.parquet").exists()


def test_what_is_written_is_not_read(tuned, films, tmp_path):
  """Where the output lies below the images."""
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "x.png").write_bytes((films[0] / "a" / "00.png").read_bytes())
  for _ in range(2):
    command(tuned, tmp_path / "in", out=tmp_path / "in" / "out", lungs="runs/lungs")
  assert [row["id"] for row in table(tmp_path / "in" / "out")] == ["x.png"]
  with pytest.raises(UserError, match=r"apart from the output in .*; choose another output folder"):
    command(tuned, tmp_path / "in", out=tmp_path / "in")


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"workdir": "{tmp}"}, r"--workdir='.*' holds no run"),
    ({"paths": ["{tmp}"]}, "no images in "),
    ({"out": "/proc/nothing"}, "--out=/proc/nothing cannot be written"),
    ({"kind": "xlsx"}, "--format='xlsx' is not an option; valid: csv, parquet"),
    ({"batch_size": 0}, "--batch_size=0 must be at least 1"),
    ({"overlays": "rainbow"}, "overlays='rainbow' is not known"),
  ],
)
def test_mistakes_are_one_line(tuned, films, tmp_path, options, message):
  given = {"workdir": str(tuned), "paths": [str(films[0])], "out": str(tmp_path / "out")}
  for key, value in options.items():
    value = [v.format(tmp=tmp_path) for v in value] if key == "paths" else value
    given[key] = value.format(tmp=tmp_path) if isinstance(value, str) else value
  with pytest.raises(UserError, match=message) as caught:
    predict.predict(**given, progress=False, say=lambda line: None)
  assert "\n" not in str(caught.value)


def test_a_run_that_is_not_what_was_trained_is_refused(tuned, films, tmp_path):
  """A checkpoint with a flipped bit, a config.json that was changed: one line, no predictions."""
  for number, (file, message) in enumerate(
    (
      ("config.json", r"trained with a config other than config.json \(config.views.mean: "),
      ("checkpoints/4/state/d/*", r"checkpoint .*/4 is damaged \(the checksum of state/d/"),
      ("checkpoints/4/_CHECKPOINT_METADATA", r"checkpoint .*/4 is damaged \("),
    )
  ):
    workdir = tmp_path / str(number)
    shutil.copytree(tuned, workdir)
    file = next(workdir.glob(file))
    if file.name == "config.json":
      config = json.loads(file.read_text())
      config["views"]["mean"] += 0.1
      file.write_text(json.dumps(config))
    else:
      data = bytearray(file.read_bytes())
      data[len(data) // 2] ^= 1
      file.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
      command(workdir, films[0], out=tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_flags(capsys, monkeypatch):
  given = {}
  monkeypatch.setattr(
    predict, "predict", lambda *args, **options: given.update(options, args=args) or 3
  )
  assert predict.main(["predict", "--overlays", "x", "--workdir=r", "y", "--out", "o"]) == 0
  assert given["args"] == ("r", ["x", "y"], "o") and given["overlays"] == predict.AUTO
  with pytest.raises(UserError, match="--workdir=RUN, --out=DIR and paths of images are needed"):
    predict.main(["predict", "--out=x"])
  with pytest.raises(UserError, match="Unknown command line flag 'ebmed'"):
    predict.main(["predict", "x", "--ebmed"])
  assert predict.main(["predict", "--help"]) == 0
  assert "--[no]embed" in capsys.readouterr().out


def test_importing_is_light():
  code = "import cxrjax, sys; assert 'jax' not in sys.modules and callable(cxrjax.load)"
  assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0
