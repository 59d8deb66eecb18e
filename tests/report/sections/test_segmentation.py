"""The page of a segmentation run: words, the table, outlines over radiographs."""

import json

import numpy as np
import pytest
from pages import Checked

from cxrjax.metrics.intervals import Interval
from cxrjax.report import terminal
from cxrjax.report.html import pictures
from cxrjax.report.pages import run_page
from cxrjax.report.run_writer import Writer


def interval(value, n=113):
  return Interval(value, value - 0.01, value + 0.01, n, "bootstrap over patients")


@pytest.fixture
def workdir(tmp_path):
  """A run judged on validation as it went, and on the test images by the chosen checkpoint."""
  rows, columns = np.mgrid[:32, :32]
  truth = np.stack([(abs(columns - 16) > 3) & (abs(rows - 16) < 6 + i) for i in range(8)])
  with Writer(tmp_path) as writer:
    (tmp_path / "config.json").write_text(json.dumps({"model": {"patch_size": 8}}))
    writer.facts(
      status="finished",
      method="segment",
      learns_from="masks",
      steps=100,
      epochs=5.0,
      batch_size=16,
      model={"name": "cxrjax.models.vit", "variant": "Nu"},
      chosen={"step": 75, "by": "dice", "evaluators": ["test"]},
      data={
        "train": {"name": "phantom", "n": 320, "lung_masks": {"published": 300, "none": 20}},
        "test": {
          "name": "phantom",
          "split": "test",
          "n": 113,
          "size": 32,
          "distances_in": "pixels",
        },
      },
    )
    for step, dice in ((50, 0.8), (75, 0.9), (100, 0.89)):
      writer.results(step, step / 20, "validation", "trained", {"dice": interval(dice)})
    writer.results(
      0, 0.0, "test", "floor", {"dice": interval(0.7), "assd": interval(3.5), "hd95": interval(9.0)}
    )
    writer.results(
      75,
      3.75,
      "test",
      "trained",
      {"dice": interval(0.91), "assd": interval(0.8), "hd95": interval(2.0)},
    )
    writer.arrays(
      "scores_test_trained",
      image=np.full((8, 32, 32), 90, np.uint8),
      truth=truth,
      predicted=np.roll(truth, 1, axis=1),
      dice=np.linspace(0.8, 0.95, 8),
      id=np.array([f"image <{i}>" for i in range(8)]),
    )
  return tmp_path


def test_the_page_says_what_was_found(workdir):
  text = run_page.write(workdir).read_text()
  Checked(text)
  assert "could not be drawn" not in text
  assert "overlap the true ones with a Dice of" in text
  assert "0.910 (0.900\N{EN DASH}0.920)" in text
  assert "the mean training mask, used for all images, reaches" in text
  assert "checkpoint of step 75, the best on validation (Dice)" in text
  assert "in pixels of images of 32 pixels per side" in text
  assert "AUROC" not in text
  assert 'alt="image &lt;0&gt;: Dice 0.800"' in text
  section = text[text.index('id="masks"') : text.index('id="data"')]
  assert section.count("<img") == 8
  assert '<span>none</span><span class="num">20</span>' in text  # images without a mask


def test_a_distance_is_better_the_smaller_it_is(workdir):
  text = run_page.write(workdir).read_text()
  table = text[text.index('class="results"') : text.index("</table>")]
  assert "<b>0.800</b>" in table
  assert "<b>3.500</b>" not in table
  # No mark on the scale from 0 to 1, where 0.8 pixels would be 80 %.
  assert "Mean training mask: 3.5" not in table
  row = table[table.index("Average surface distance") : table.index("95 % Hausdorff")]
  assert "<circle" not in row


def test_the_terminal_names_the_floor_of_masks(workdir):
  text = terminal.results_table(workdir)
  lines = text.splitlines()
  assert "Mean training mask" in text
  assert "Thumbnail" not in text
  order = [
    next(i for i, line in enumerate(lines) if line.startswith(word))
    for word in ("Dice", "Average surface distance", "95 % Hausdorff distance")
  ]
  assert order == sorted(order)


def test_outlines_are_the_border_of_the_mask():
  mask = np.zeros((8, 8), bool)
  mask[2:5, 3:7] = True
  found = pictures.outlines(np.zeros((8, 8), np.uint8), [mask], [(255, 0, 0)], size=8)
  wanted = mask.copy()
  wanted[3, 4:6] = False
  np.testing.assert_array_equal(found[..., 0] == 255, wanted)
  assert not found[..., 1:].any()
  large = pictures.outlines(np.zeros((8, 8), np.uint8), [mask], [(255, 0, 0)], size=32)
  assert large.shape == (32, 32, 3)
  assert (large[..., 0] == 255).sum() == 2 * 16 + 2 * 12 - 4  # one pixel wide at any scale
  edge = pictures.outlines(np.zeros((4, 4), np.uint8), [np.ones((4, 4), bool)], [(1, 2, 3)], size=4)
  assert (edge == (1, 2, 3)).all(-1).sum() == 12  # the image's border is the mask's
