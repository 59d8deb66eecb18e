"""What notebooks show."""

import numpy as np
import pytest

from cxrjax.report import notebook
from cxrjax.report.html import line_chart


def test_a_sheet_has_every_picture_in_its_place():
  dark, light = np.zeros((8, 8), np.uint8), np.full((8, 8, 1), 200, np.uint8)
  red = np.zeros((4, 8, 3), np.uint8)
  red[..., 0] = 255
  whole = np.asarray(notebook.sheet([dark, light, red], columns=2, side=32))
  assert whole.shape == (2 * 38 + 6, 2 * 38 + 6, 3)
  assert (whole[6:38, 6:38] == 0).all() and (whole[6:38, 44:76] == 200).all()
  assert (whole[44:60, 6:38] == (255, 0, 0)).all() and (whole[60:, 6:38] == 255).all()
  assert (whole[44:, 44:] == 255).all()


def test_captions_stand_below_and_are_cut():
  plain = [np.full((8, 8), 255, np.uint8)] * 2
  whole = np.asarray(notebook.sheet(plain, ["normal", "opacity " * 20], side=64))
  assert whole.shape == (6 + 64 + 18 + 6, 6 + 2 * 70, 3)
  assert (whole[:70] == 255).all() and (whole[72:86] < 128).any()
  assert (whole[:, -6:] == 255).all() and (whole[:, 70:76] == 255).all()
  for wrong in ([], ["one"]):
    with pytest.raises(ValueError, match="captions"):
      notebook.sheet(plain if wrong else [], wrong)


def test_a_frame_keeps_the_page_as_it_is(tmp_path):
  (tmp_path / "page.html").write_text('<p title="a">1 < 2 & 3</p>')
  shown = notebook.framed(tmp_path / "page.html", 200)._repr_html_()
  assert 'srcdoc="&lt;p title=&quot;a&quot;&gt;1 &lt; 2 &amp; 3&lt;/p&gt;"' in shown
  assert 'height="200"' in shown
  line = line_chart.Line("loss", np.arange(3.0), np.arange(3.0))
  page = notebook.framed(line_chart.chart("Loss", [line], x_label="step")).page
  assert page.startswith("<!doctype html><style>") and "<svg" in page
