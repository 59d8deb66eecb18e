import io
import zipfile

import pytest

from cxrjax.core.errors import UserError
from cxrjax.data.sources import archive, xlsx
from cxrjax.data.sources.table_file import TableFile

SPACE = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
STRINGS = (
  "<sst {0}><si><t>FILE NAME</t></si><si><r><t>U</t></r><r><t>RL</t></r>"
  "<rPh><t>no</t></rPh></si>"
  "<si><t xml:space='preserve'> https://a.b/?x=1&amp;y=2 </t></si></sst>"
)
SHEET = (
  '<worksheet {0}><sheetData><row r="1"><c r="A1" t="s"><v>0</v></c><c r="B1" t="inlineStr">'
  '<is><t>SIZE</t></is></c><c r="C1" t="s"><v>1</v></c></row>'
  '<row r="2"><c r="A2" t="str"><f>x</f><v>COVID-1</v></c><c r="C2" t="s"><v>2</v></c></row>'
  '<row r="3"/><row r="4"><c><v>7</v></c><c><v>8</v></c></row></sheetData></worksheet>'
)


DEEP = f"<sst><si>{'<r>' * 20_000}<t>FILE NAME</t>{'</r>' * 20_000}</si></sst>"


def opened(tmp_path, sheet=SHEET, strings=STRINGS, **others):
  inside = io.BytesIO()
  with zipfile.ZipFile(inside, "w") as made:
    for name, text in {
      "sharedStrings": strings,
      "worksheets/sheet10": "<a/>",
      "worksheets/sheet1": sheet,
      **others,
    }.items():
      if text is not None:
        made.writestr(f"xl/{name}.xml", text.format(SPACE))
  path = tmp_path / "x.zip"
  with zipfile.ZipFile(path, "w") as made:
    made.writestr("a.xlsx", inside.getvalue())
    made.writestr("b.xlsx", b"no zip")
  return archive.Archive(path)


def test_cells_of_every_kind(tmp_path):
  found = list(xlsx.rows(opened(tmp_path), "a.xlsx", ("FILE NAME", "URL")))
  assert [row for _, row in found] == [
    {"FILE NAME": "COVID-1", "SIZE": "", "URL": "https://a.b/?x=1&y=2"},
    {"FILE NAME": "7", "SIZE": "8", "URL": ""},
  ]
  assert found[0][0].endswith("a.xlsx line 2") and found[1][0].endswith("line 4")


def test_what_nests_deeply(tmp_path):
  with pytest.raises(UserError, match="damaged in row 1"):  # it has one text of three
    list(xlsx.rows(opened(tmp_path, strings=DEEP), "a.xlsx"))


@pytest.mark.parametrize(
  "parts, word",
  [
    ({"sheet": SHEET.replace("<v>0</v>", "<v>9</v>")}, "damaged in row 1"),
    ({"sheet": SHEET[:-20]}, "is damaged .*sheet1.xml"),
    ({"sheet": "<!DOCTYPE x [<!ENTITY a 'aaa'>]>" + SHEET}, "declares a document type"),
    ({"sheet": f"<!--{' ' * 5000}--><!DOCTYPE x [<!ENTITY a 'a'>]>{SHEET}"}, "document type"),
    ({"strings": None}, "damaged in row 1"),
  ],
)
def test_damaged(tmp_path, parts, word):
  with pytest.raises(UserError, match=rf"x.zip: a.xlsx.*{word}"):
    list(xlsx.rows(opened(tmp_path, **parts), "a.xlsx"))


def test_not_that_table(tmp_path):
  with pytest.raises(UserError, match=r"a.xlsx has no column 'URLS'; did you mean 'URL'"):
    list(xlsx.rows(opened(tmp_path), "a.xlsx", ("URLS",)))
  with pytest.raises(UserError, match=r"x.zip:.*b.xlsx is not a complete zip"):
    list(xlsx.rows(opened(tmp_path), "b.xlsx"))


def test_what_openpyxl_writes(tmp_path):
  openpyxl = pytest.importorskip("openpyxl")
  book = openpyxl.Workbook()
  for row in (("FILE NAME", "FORMAT", "SIZE", "URL"), ("NORMAL-1", "PNG", 3, None)):
    book.active.append(row)
  book.save(tmp_path / "c.xlsx")
  found = [row for _, row in xlsx.rows(archive.Archive(tmp_path), "c.xlsx")]
  assert found == [{"FILE NAME": "NORMAL-1", "FORMAT": "PNG", "SIZE": "3", "URL": ""}]


def test_a_table_that_openpyxl_writes_is_read_as_its_csv(tmp_path):
  openpyxl = pytest.importorskip("openpyxl")
  table = (
    ("path", "Effusion", "patient", "age", "sex"),
    ("0.png", 1, "007", 54, "F"),
    ("1.png", 0.0, 8, 61.5, "M"),
    (),
    ("\u00e4 <&>.png", -1, "p 9", None, "#N/A"),
    ("3.png", True, "=A1", 70, ""),
  )
  book = openpyxl.Workbook()
  for row in table:
    book.active.append(row)
  book.active["C6"].data_type = "s"  # text, and no formula
  book.save(tmp_path / "list.xlsx")
  file = TableFile("list.xlsx", (tmp_path / "list.xlsx").read_bytes())
  assert file.header == ["path", "Effusion", "patient", "age", "sex"]
  assert list(file.rows()) == [
    (2, ["0.png", "1", "007", "54", "F"]),
    (3, ["1.png", "0", "8", "61.5", "M"]),
    (5, ["\u00e4 <&>.png", "-1", "p 9", "", "#N/A"]),
    (6, ["3.png", "1", "=A1", "70", ""]),
  ]


def test_a_formula_is_not_computed(tmp_path):
  openpyxl = pytest.importorskip("openpyxl")
  book = openpyxl.Workbook()
  book.active.append(["path", "label"])
  book.active.append(["0.png", "=1+1"])  # openpyxl keeps no value with it
  book.save(tmp_path / "list.xlsx")
  file = TableFile("list.xlsx", (tmp_path / "list.xlsx").read_bytes())
  assert list(file.rows()) == [(2, ["0.png", ""])]


@pytest.mark.parametrize("target", ["worksheets/sheet2.xml", "/xl/worksheets/sheet2.xml"])
def test_the_first_sheet_is_the_one_that_is_shown_first(tmp_path, target):
  def sheet(text):
    cell = f'<c t="inlineStr"><is><t>{text}</t></is></c>'
    return f"<worksheet><sheetData><row>{cell}</row></sheetData></worksheet>"

  with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as made:
    made.writestr("xl/worksheets/sheet1.xml", sheet("second"))
    made.writestr("xl/worksheets/sheet2.xml", sheet("first"))
    made.writestr(
      "xl/workbook.xml",
      '<workbook xmlns:r="urn:r"><sheets><sheet name="chart" r:id="c"/><sheet name="x" r:id="b"/>'
      '<sheet name="y" r:id="a"/></sheets></workbook>',
    )
    made.writestr(
      "xl/_rels/workbook.xml.rels",
      '<Relationships><Relationship Id="a" Target="worksheets/sheet1.xml"/>'
      '<Relationship Id="c" Target="chartsheets/sheet1.xml"/>'
      f'<Relationship Id="b" Target="{target}"/></Relationships>',
    )
  data = (tmp_path / "a.xlsx").read_bytes()
  assert [cells for _, cells in xlsx.sheet("a.xlsx", data)] == [{1: "first"}]
