import dataclasses
import errno
import json
import math
import os
import struct
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from cxrjax.core.errors import UserError
from cxrjax.report import run_files as runs
from cxrjax.report import run_writer as module
from cxrjax.report.run_writer import Writer


def lines(path):
  def no_constants(name):
    raise AssertionError(f"{name} is not JSON")

  text = (path / "metrics.jsonl").read_text()
  assert text == "" or text.endswith("\n")
  return [json.loads(line, parse_constant=no_constants) for line in text.splitlines()]


def crc32c(data):
  """Bit by bit, Castagnoli's polynomial reversed."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
  return crc ^ 0xFFFFFFFF


def masked(data):
  crc = crc32c(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(path):
  """All TensorBoard events of a workdir, file by file in order of creation, sums checked."""
  found = []
  files = sorted((path / "tensorboard").iterdir(), key=lambda f: f.stat().st_mtime_ns)
  for file in files:
    data, at = file.read_bytes(), 0
    while at < len(data):
      header = data[at : at + 8]
      (length,) = struct.unpack("<Q", header)
      body = data[at + 12 : at + 12 + length]
      sums = struct.unpack("<I", data[at + 8 : at + 12]) + struct.unpack(
        "<I", data[at + 12 + length : at + 16 + length]
      )
      assert sums == (masked(header), masked(body))
      found.append(event_pb2.Event.FromString(body))
      at += 16 + length
  return found


def test_crc_reference():
  assert crc32c(b"123456789") == 0xE3069283  # the check value of the CRC catalogue


def test_scalars_are_strict_json_with_null_for_nan(tmp_path):
  with Writer(tmp_path) as writer:
    writer.scalars(
      np.int64(3),
      0.5,
      {
        "loss": jnp.float32(0.1),
        "nan": float("nan"),
        "inf": -math.inf,
        "n": 7,
        "one": np.ones((1, 1), np.float32),
      },
    )
  assert lines(tmp_path) == [
    {
      "step": 3,
      "epoch": 0.5,
      "kind": "train",
      "loss": 0.100000001,
      "nan": None,
      "inf": None,
      "n": 7,
      "one": 1.0,
    }
  ]


def test_float32_values_survive_exactly(tmp_path):
  values = np.random.default_rng(0).standard_normal(200).astype(np.float32)
  with Writer(tmp_path) as writer:
    for i, v in enumerate(values):
      writer.scalars(i, 0.0, {"v": v})
  back = np.array([line["v"] for line in lines(tmp_path)], np.float32)
  np.testing.assert_array_equal(back, values)


def test_results_take_any_kind_of_interval(tmp_path):
  @dataclasses.dataclass
  class Interval:
    value: float
    low: float
    high: float
    n: int
    method: str

  class Pair(NamedTuple):
    value: float
    low: float

  with Writer(tmp_path) as writer:
    writer.results(
      5,
      1.0,
      "probe",
      "trained",
      {
        "a": Interval(0.5, 0.25, math.nan, 10, "DeLong"),
        "b": {"value": jnp.float32(0.5)},
        "c": 0.25,
        "d": Pair(0.5, 0.25),
      },
    )
  (line,) = lines(tmp_path)
  assert line["kind"] == "eval" and line["evaluator"] == "probe" and line["encoder"] == "trained"
  assert line["metrics"] == {
    "a": {"value": 0.5, "low": 0.25, "high": None, "n": 10, "method": "DeLong"},
    "b": {"value": 0.5},
    "c": {"value": 0.25},
    "d": {"value": 0.5, "low": 0.25},
  }


def test_cut_at_any_byte_only_the_torn_line_is_lost(tmp_path):
  with Writer(tmp_path) as writer:
    for step in range(3):
      writer.scalars(step, 0.0, {"µ": step})
  path = tmp_path / "metrics.jsonl"
  whole = path.read_bytes()
  for cut in range(len(whole) + 1):
    path.write_bytes(whole[:cut])
    Writer(tmp_path).close()
    kept = [line["step"] for line in lines(tmp_path)]
    assert kept == list(range(whole[:cut].count(b"\n")))


def test_a_torn_line_longer_than_a_read_block_is_dropped(tmp_path):
  path = tmp_path / "metrics.jsonl"
  good = b'{"step":1,"kind":"train"}\n'
  path.write_bytes(good + b"x" * 200_000)
  Writer(tmp_path).close()
  assert path.read_bytes() == good


def test_truncate_forgets_what_a_resumed_run_writes_again(tmp_path):
  with Writer(tmp_path) as writer:
    writer.results(0, 0.0, "probe", "random", {"a": 0.5})
    for step in (10, 20, 30):
      writer.scalars(step, step / 10, {"loss": step})
      writer.results(step, step / 10, "probe", "trained", {"a": step})
    writer.results(30, 3.0, "probe", "floor", {"a": 0.5})
  with Writer(tmp_path) as writer:
    assert writer.truncate(20) == 2
    writer.scalars(25, 2.5, {"loss": 0})
  kept = [(x["step"], x.get("encoder")) for x in lines(tmp_path)]
  assert kept == [
    (0, "random"),
    (10, None),
    (10, "trained"),
    (20, None),
    (20, "trained"),
    (30, "floor"),
    (25, None),
  ]


def test_what_a_kill_has_left_half_written_is_removed(tmp_path):
  (tmp_path / "figures").mkdir()
  for name in (".run.json.17.tmp", "figures/.views.npz.17.tmp", "figures/views.npz", "mine.tmp"):
    (tmp_path / name).write_bytes(b"x")
  Writer(tmp_path).close()
  assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == [
    "figures/views.npz",
    "metrics.jsonl",
    "mine.tmp",
  ]


def test_a_run_that_begins_anew_keeps_what_it_does_not_write_again(tmp_path):
  with Writer(tmp_path) as writer:
    writer.results(0, 0.0, "probe", "floor", {"a": 0.5})
    writer.results(0, 0.0, "probe", "random", {"a": 0.5})
    writer.scalars(1, 0.1, {"loss": 1})
    assert writer.truncate(0) == 0
  assert [x["encoder"] for x in lines(tmp_path)] == ["floor"]
  with Writer(tmp_path) as writer:
    assert writer.has("probe", "floor")
    assert not writer.has("probe", "random") and not writer.has("test", "floor")
  assert not Writer(tmp_path / "other", active=False).has("probe", "floor")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_full_disk_has_room_for_how_the_run_ended(tmp_path, monkeypatch, number):
  real = module.atomic_open

  def full(path):
    if any(path.stat().st_size > 1e5 for path in tmp_path.iterdir()):  # something to give up
      raise OSError(number, os.strerror(number))
    return real(path)

  with Writer(tmp_path) as writer:
    writer.facts(status="running")
    monkeypatch.setattr(module, "atomic_open", full)
    if number == errno.EACCES:  # for which room is no help
      with pytest.raises(UserError, match="cannot be written"):
        writer.facts(status="failed")
    else:
      writer.facts(status="failed")
  ended = "running" if number == errno.EACCES else "failed"
  assert json.loads((tmp_path / "run.json").read_text())["status"] == ended
  assert not [path for path in tmp_path.iterdir() if path.stat().st_size > 1e5]


def test_the_last_line_of_a_step_wins(tmp_path):
  with Writer(tmp_path) as writer:
    for value in (1, 2):
      writer.scalars(10, 1.0, {"loss": value})
      writer.results(10, 1.0, "probe", "trained", {"a": value})
  run = runs.read(tmp_path)
  assert run.curves["loss"].value.tolist() == [2.0]
  assert [e.metrics["a"].value for e in run.evaluations] == [2.0]


def test_facts_are_merged_in_depth(tmp_path):
  with Writer(tmp_path) as writer:
    writer.facts(status="running", data={"train": {"n": 3, "notes": ("a", "b")}})
  with Writer(tmp_path) as writer:
    writer.facts(
      status="finished", data={"probe": {"n": np.int32(2), "x": float("nan")}}, path=tmp_path
    )
  assert json.loads((tmp_path / "run.json").read_text()) == {
    "status": "finished",
    "path": str(tmp_path),
    "data": {"train": {"n": 3, "notes": ["a", "b"]}, "probe": {"n": 2, "x": None}},
  }


def test_a_broken_run_json_is_replaced(tmp_path):
  (tmp_path / "run.json").write_text("{half")
  with Writer(tmp_path) as writer:
    writer.facts(a=1)
  assert json.loads((tmp_path / "run.json").read_text()) == {"a": 1}


def test_arrays(tmp_path):
  with Writer(tmp_path) as writer:
    writer.arrays("views", source=jnp.zeros((2, 3), jnp.uint8), label=["a", "bc"])
  with np.load(tmp_path / "figures" / "views.npz", allow_pickle=False) as file:
    assert file["source"].shape == (2, 3) and file["label"].tolist() == ["a", "bc"]
  assert os.listdir(tmp_path / "figures") == ["views.npz"]


def test_tensorboard_reads_it_back(tmp_path):
  with Writer(tmp_path) as writer:
    writer.scalars(1, 0.1, {"loss": 2.5, "bad": float("nan")})
    writer.results(1, 0.1, "probe", "trained", {"knn5/auroc": {"value": 0.75, "low": 0.5}})
  version, train, result = events(tmp_path)
  assert version.file_version == "brain.Event:2"
  values = {v.tag: v.simple_value for v in train.summary.value}
  assert train.step == 1 and values["train/loss"] == 2.5 and math.isnan(values["train/bad"])
  assert [(v.tag, v.simple_value) for v in result.summary.value] == [
    ("probe/trained/knn5/auroc", 0.75)
  ]


def test_tensorboard_is_told_to_forget_too(tmp_path):
  with Writer(tmp_path) as writer:
    writer.scalars(10, 0.1, {"loss": 1})
    writer.scalars(20, 0.1, {"loss": 1})
  with Writer(tmp_path) as writer:  # within the same second: a file of its own all the same
    writer.truncate(10)
    writer.scalars(20, 0.1, {"loss": 2})
  assert len(os.listdir(tmp_path / "tensorboard")) == 2
  starts = [e for e in events(tmp_path) if e.WhichOneof("what") == "session_log"]
  assert [(e.step, e.session_log.status) for e in starts] == [(11, event_pb2.SessionLog.START)]


def test_an_inactive_writer_writes_nothing(tmp_path):
  path = tmp_path / "run"
  with Writer(path, active=False) as writer:
    writer.scalars(0, 0.0, {"a": 1})
    writer.results(0, 0.0, "probe", "trained", {"a": 1})
    writer.facts(a=1)
    writer.arrays("views", a=np.zeros(1))
    writer.truncate(0)
  assert not path.exists()


def test_a_workdir_that_is_a_file(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match=r"file.* cannot be written .*--workdir"):
    Writer(tmp_path / "file")


def test_a_closed_writer_says_so(tmp_path):
  writer = Writer(tmp_path)
  writer.close()
  writer.close()
  with pytest.raises(UserError, match="closed"):
    writer.scalars(0, 0.0, {})


def test_full_disk_names_the_file_and_leaves_no_torn_line(tmp_path, monkeypatch):
  writer = Writer(tmp_path)
  writer.scalars(1, 0.0, {"a": 1})
  write, calls = os.write, []

  def full(file, data):
    calls.append(data)
    if len(calls) == 1:
      return write(file, data[:5])  # a nearly full disk takes a part
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "write", full)
  with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written \(No space left"):
    writer.scalars(2, 0.0, {"a": 1})
  monkeypatch.undo()
  assert len(calls) == 2
  writer.scalars(3, 0.0, {"a": 1})
  writer.close()
  assert [x["step"] for x in lines(tmp_path)] == [1, 3]


@pytest.mark.parametrize("name", ["run.json", "views.npz"])
def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch, name):
  writer = Writer(tmp_path)

  def write():
    writer.facts(a=1) if name == "run.json" else writer.arrays("views", a=np.zeros(3))

  write()
  path = tmp_path / name if name == "run.json" else tmp_path / "figures" / name
  before = path.read_bytes()

  def full(file):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(UserError, match="No space left"):
    write()
  monkeypatch.undo()
  writer.close()
  assert path.read_bytes() == before
  assert not [f for f in path.parent.iterdir() if f.suffix == ".tmp"]
