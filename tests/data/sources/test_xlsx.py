import io
import zipfile

import pytest

from cxrjax.core.errors import UserError
from cxrjax.data.sources import archive, xlsx

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
  with pytest.raises(UserError, match=r"x.zip:.*b.xlsx is not a whole zip"):
    list(xlsx.rows(opened(tmp_path), "b.xlsx"))


def test_what_openpyxl_writes(tmp_path):
  openpyxl = pytest.importorskip("openpyxl")
  book = openpyxl.Workbook()
  for row in (("FILE NAME", "FORMAT", "SIZE", "URL"), ("NORMAL-1", "PNG", 3, None)):
    book.active.append(row)
  book.save(tmp_path / "c.xlsx")
  found = [row for _, row in xlsx.rows(archive.Archive(tmp_path), "c.xlsx")]
  assert found == [{"FILE NAME": "NORMAL-1", "FORMAT": "PNG", "SIZE": "3", "URL": ""}]
