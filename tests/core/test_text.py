"""Names that others chose: shown without acting, in errors, on a terminal, on a page, in tables."""

import csv
import io
import subprocess
import sys

import pytest

from cxrjax.core import command, tables
from cxrjax.core.errors import UserError
from cxrjax.core.text import escape, identifier
from cxrjax.report.html.element import el
from cxrjax.report.pages import run_page

HOSTILE = "a\x1b[31mb\x07\u202egnp.\u2066\u200b\ufeff\x9b\x7f\udcff\udc1b\U000e0041z"
WRITTEN = "a\\x1b[31mb\\x07\\u202egnp.\\u2066\\u200b\\ufeff\\x9b\\x7f\\xff\\udc1b\\U000e0041z"


def test_what_is_not_seen_is_written_out():
  assert escape(HOSTILE) == WRITTEN and WRITTEN.isprintable()
  assert escape(escape(HOSTILE)) == WRITTEN
  for usual in ("Übung 胸部 X線/صورة.png", "a b\\c~d", "naïve e\u0301", ""):
    assert escape(usual) == usual
  assert (
    escape("a\nb\tc\rd") == "a\\nb\\tc\\rd" and escape("a\nb\tc\r", keep="\n\t") == "a\nb\tc\\r"
  )


def test_identifiers_of_no_two_names_are_the_same(tmp_path):
  names = ["a", "a\\b", "\udcff", "\\xff", "\\\\xff", "\ud800", "\\ud800", "\\\\"]
  found = [identifier(name) for name in names]
  assert found[:3] == ["a", "a\\b", "\\xff"] and len(set(found)) == len(names)
  run_page.save_table(tmp_path / "a.csv", [("id", "n"), *((name, 1) for name in names)])
  with open(tmp_path / "a.csv", encoding="utf-8", newline="") as opened:
    assert [*csv.reader(opened)][1:] == [[name, "1"] for name in found]


def test_errors_are_one_line_that_cannot_act():
  assert str(UserError(f"{HOSTILE}\nx")) == WRITTEN + "\\nx"


def test_lines_for_the_terminal(capsys):
  command.say(f"name {HOSTILE}\nnext")
  assert capsys.readouterr().out == f"name {WRITTEN}\nnext\n"
  with pytest.raises(SystemExit, match="2"):
    command.run(lambda: (_ for _ in ()).throw(UserError(HOSTILE)))
  assert capsys.readouterr().err == f"error: {WRITTEN}\n"


def test_pages():
  assert el("p", HOSTILE, title=HOSTILE + "<") == (f'<p title="{WRITTEN}&lt;">{WRITTEN}</p>')


RUNS = [
  "=1+1",
  "+1+1",
  "-2+3",
  "@SUM(A1)",
  "\t=1",
  "\r=1",
  "\n=1",
  "=cmd|' /C calc'!A0",
  "'=1",
  "''=1",
  "\uff1d1",
  "-",
  "--",
  "+a",
]
TAKEN = [
  "a=1",
  "",
  "1",
  "-1",
  "+1.5",
  "-2e-3",
  "'a",
  "a'",
  "x;=1",
  "x,=1",
  'x"=1',
  "x\r=1",
  "x\ny",
  " =1",
  "1.2.840",
  "patient/=1.png",
  "-inf",
  "ü",
]


def test_no_cell_is_a_formula_and_every_cell_is_read_back():
  opened = io.StringIO(newline="")
  tables.write(opened, [["id", "value", "none"], *([text, -0.5, None] for text in RUNS + TAKEN)])
  opened.seek(0)
  header, *raw = csv.reader(opened)
  assert header == ["id", "value", "none"]
  for row, text in zip(raw, RUNS + TAKEN, strict=True):
    assert row == [("'" if text in RUNS else "") + text, "-0.5", ""]
  opened.seek(0)
  assert [row[0] for row in tables.read(opened)][1:] == RUNS + TAKEN
  # Programs that divide cells elsewhere find no cell that begins with a formula.
  opened.seek(0)
  for delimiter in ";\t":
    for row in csv.reader(opened, delimiter=delimiter):
      assert not any(cell.startswith("=") for cell in row)


def test_records_are_rows_below_their_columns():
  assert list(tables.rows("a b", [])) == [["a", "b"]]
  assert list(tables.rows("a b", [{"b": 1, "c": 2}])) == [["a", "b"], ["", 1]]


def test_a_flagfile_that_is_not_there_is_one_line():
  done = subprocess.run(
    [sys.executable, "-m", "cxrjax.main", "--flagfile=/nope\x1b"], capture_output=True, text=True
  )
  assert done.returncode == 2 and "\x1b" not in done.stderr
  assert done.stderr.startswith("error: Unable to open flagfile") and done.stderr.count("\n") == 1
