"""A whole audit: files, page, exit; mistakes in one line."""

import csv
import json

import dicoms
import numpy as np
import pytest
from pages import Checked
from PIL import Image

from cxrjax.config.config_files import load_config
from cxrjax.core.errors import UserError
from cxrjax.data.sources import phantom
from cxrjax.tasks import audit


def config(arg="tiny", **changes):
  path = "audit"
  get_config = load_config(path)
  return {**get_config(arg).to_dict(), **changes}


def rows(path):
  with open(path, newline="") as opened:
    return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
  """Two folders that share a radiograph; one has an inverted image, a broken one, a crossing
  patient and hostile names."""
  root = tmp_path_factory.mktemp("audit")
  source = phantom.Source(split="train", n=96, size=96)
  first = list({p: i for i, p in reversed(list(enumerate(source.table.patients)))}.values())
  drawn = [source[i].image[..., 0] for i in sorted(first)[:45]]
  listed = ["path,label,patient,split,site,sex,age"]
  for k, pixels in enumerate(drawn[:40]):
    name = f"a/<b>{k:02d}&.png"
    (root / "a/a").mkdir(parents=True, exist_ok=True)
    Image.fromarray(255 - pixels if k == 7 else pixels).save(root / "a" / name)
    listed.append(
      f"{name},{'xy'[k % 2]},SECRETNAME{k % 38},{'train' if k < 30 else 'test'},"
      f"site{k % 2},{'FM'[k % 3 > 0]},{20 + k}"
    )
  (root / "a/bad.png").write_bytes(b"no image")
  listed.append("bad.png,x,SECRETNAME99,test,site0,,")
  (root / "a/labels.csv").write_text("\n".join(listed) + "\n")
  for k, pixels in enumerate([drawn[3], *drawn[40:]]):
    path = root / "b" / "all" / f"{k}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
  both = config(looks=200)
  both["data"]["sources"] = [
    {
      "source": f"folder:{root / 'a'}",
      "options": {"csv": "labels.csv", "patient_column": "patient", "site_column": "site"},
    },
    {"source": f"folder:{root / 'b'}", "options": {}},
  ]
  both["data"]["size"] = 96
  said = []
  assert audit.run(both, root / "run", "the command", say=said.append) == 0
  return root / "run", "\n".join(said), both


def test_what_it_says(audited):
  workdir, said, _ = audited
  assert "copies    1 pairs show the same radiograph, 1 of them between splits or sources" in said
  assert "1 unreadable, 0 left out, 0 blank, 1 inverted" in said
  assert (
    "patients  2 patients are in several splits; patients are unknown for 6 of 6 images of folder:"
  ) in said
  assert "note: labels.csv: " not in said  # all columns are used
  assert "note: patients unknown: every image counts" in said  # of the other folder
  assert said.endswith(f"report    {workdir / 'audit.html'}")


def test_tables(audited):
  workdir, _, _ = audited
  (pair,) = (p for p in rows(workdir / "pairs.csv") if p["kind"] == "copy")
  assert (pair["a_id"], pair["across"]) == ("a/<b>03&.png", "sources")
  assert float(pair["r"]) > 0.99
  images = {(r["source"].rpartition("/")[2], r["id"]): r for r in rows(workdir / "images.csv")}
  assert len(images) == 41 + 6
  assert images["a", "a/<b>07&.png"]["status"] == "inverted"
  assert images["a", "bad.png"]["status"] == "unreadable" and images["a", "bad.png"]["reason"]
  assert images["a", "a/<b>04&.png"]["age"] == "24" and images["a", "a/<b>04&.png"]["labels"] == "x"
  copies = {r["id"] for r in images.values() if r["copies"]}
  assert copies == {"a/<b>03&.png", pair["b_id"]}
  crossing = rows(workdir / "patients.csv")
  assert {r["id"] for r in crossing} == {
    "a/<b>00&.png",
    "a/<b>01&.png",
    "a/<b>38&.png",
    "a/<b>39&.png",
  }
  floors = rows(workdir / "floor.csv")
  assert {(f["kind"], f["name"]) for f in floors if f["kind"] != "source"} >= {("label", "y")}
  assert sum(f["kind"] == "source" for f in floors) == 2
  for f in floors:
    assert f["undefined"] or 0 <= float(f["low"]) <= float(f["auroc"]) <= float(f["high"]) <= 1


def test_page(audited):
  workdir, _, _ = audited
  html = (workdir / "audit.html").read_text()
  text = " ".join("".join(Checked(html).text).split())
  for words in (
    "47 radiographs",
    "1 pair shows",
    "2 patients are in several splits",
    "1 image is inverted",
    "1 image is unreadable",
    "the command",
    "Research use only",
    "a/<b>07&.png".rpartition("/")[2],
  ):
    assert words in text, words
  assert "could not be drawn" not in text
  assert Checked(html).images >= 3
  assert not list(workdir.rglob("*.tmp"))


def test_nobody_is_named(audited):
  workdir, said, _ = audited
  for path in workdir.rglob("*"):
    if path.is_file():
      assert b"SECRETNAME" not in path.read_bytes(), path.name
  assert "SECRETNAME" not in said


def test_the_page_survives_what_is_missing(audited, tmp_path):
  from cxrjax.audit import page

  assert "could not be drawn" in page.render(page.runs.read(tmp_path))
  facts = json.loads((audited[0] / "run.json").read_text())
  (tmp_path / "run.json").write_text(json.dumps(facts))
  Checked(page.write(tmp_path).read_text())  # without pictures


def test_the_same_again_and_another_config(audited):
  workdir, said, both = audited
  again = []
  assert audit.run(both, workdir, "the command", say=again.append) == 0
  assert "\n".join(again) == said
  with pytest.raises(UserError, match=r"config.copy: 0.9 -> 0.95"):
    audit.run({**both, "copy": 0.95}, workdir, say=again.append)


def test_images_none_of_which_can_be_read(tmp_path):
  for k in range(3):
    (tmp_path / "set").mkdir(exist_ok=True)
    (tmp_path / f"set/{k}.png").write_bytes(b"no image")
  said = []
  found = config(f"tiny,data=folder:{tmp_path / 'set'}")
  assert audit.run(found, tmp_path / "run", say=said.append) == 0
  assert "images    3: 3 unreadable" in "\n".join(said)
  Checked((tmp_path / "run/audit.html").read_text())


def test_raw_detector_values_are_told_on_the_page_and_in_the_table(tmp_path):
  noise = np.random.default_rng(0).integers(0, 4096, (3, 64, 64), np.uint16)
  (tmp_path / "set").mkdir()
  for k in range(3):
    kind = {"PresentationIntentType": "FOR PROCESSING"} if k == 1 else {}
    (tmp_path / f"set/{k}.dcm").write_bytes(dicoms.dicom(noise[k], **kind))
  found = config(f"tiny,data=folder:{tmp_path / 'set'}")
  assert audit.run(found, tmp_path / "run", say=lambda s: None) == 0
  assert "FOR PROCESSING" in (tmp_path / "run/audit.html").read_text()
  told = {row["id"]: row["reason"] for row in rows(tmp_path / "run/images.csv")}
  assert "FOR PROCESSING" in told["1.dcm"] and "FOR PROCESSING" not in told["0.dcm"]


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"copy": 1.5}, "config.copy=1.5 is not a correlation"),
    ({"same": 0.95}, "config.same=0.95 must not be above config.copy=0.9"),
    ({"looks": 0}, "config.looks=0 must be a whole number from 1"),
    ({"folds": 1}, "config.folds=1 must be a whole number from 2"),
  ],
)
def test_mistakes_are_one_line(tmp_path, changes, message):
  with pytest.raises(UserError, match=message) as error:
    audit.run(config(**changes), tmp_path / "run", say=lambda s: None)
  assert "\n" not in str(error.value)
  assert not (tmp_path / "run").exists()


def test_the_config_names_several_sources():
  found = config("data=folder:/a+tfds:b+phantom,manual_dir=/m,data.splits=train;test,data.x=1")
  assert [s["source"] for s in found["data"]["sources"]] == ["folder:/a", "tfds:b", "phantom"]
  options = [s["options"] for s in found["data"]["sources"]]
  assert options[0] == {"x": 1} and options[1] == {"x": 1, "manual_dir": "/m"}
  assert found["data"]["splits"] == ("train", "test")
  np.testing.assert_equal(options[2]["n"], 512)
