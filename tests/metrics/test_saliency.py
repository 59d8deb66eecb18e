import numpy as np
import pytest

from cxrjax.metrics import saliency

MASK = np.zeros((4, 5), bool)
MASK[1:3, 1:5] = True  # 8 of 20 pixels


def score(heat, mask=MASK):
  found = saliency.score_maps(np.asarray(heat, np.float32)[None], mask[None])
  return {name: v[0] for name, v in found.values.items()}, found.reasons[0]


def test_by_hand():
  heat = np.zeros((4, 5))
  heat[0, 0], heat[1, 1], heat[2, 3], heat[3, 4] = 4, 3, 2, 1
  found, reason = score(heat)
  assert not reason
  # A fifth are 4 pixels: all that are above 0, two of them in the mask of 8.
  assert found == pytest.approx(
    {"energy": 0.5, "energy_ratio": 0.5 / 0.4, "pointing": 0.0, "iou20": 2 / 10}
  )


def test_a_map_inside_is_all_inside():
  found, _ = score(MASK * np.arange(20).reshape(4, 5))
  assert found == pytest.approx(
    {"energy": 1.0, "energy_ratio": 2.5, "pointing": 1.0, "iou20": 4 / 8}
  )


def test_the_mask_itself():
  found, _ = score(MASK)
  assert found == pytest.approx(
    {"energy": 1.0, "energy_ratio": 2.5, "pointing": 1.0, "iou20": 1.0}
  )  # all its pixels are equal


def test_what_is_below_0_is_no_evidence():
  heat = np.where(MASK, 1.0, -5.0)
  assert score(heat)[0]["energy"] == 1.0


def test_scale_does_not_count_and_equal_largest_values_share():
  heat = np.zeros((4, 5))
  heat[0, 0] = heat[1, 1] = 0.25
  assert score(heat)[0]["pointing"] == 0.5
  assert score(1000 * heat)[0] == score(heat)[0]


@pytest.mark.parametrize(
  ("heat", "mask", "reason"),
  [
    (np.zeros((4, 5)), MASK, saliency.FLAT),
    (np.full((4, 5), 3.0), MASK, saliency.FLAT),
    (np.full((4, 5), np.nan), MASK, saliency.FLAT),
    (np.full((4, 5), -1.0), MASK, saliency.FLAT),
    (np.eye(4, 5), np.zeros((4, 5), bool), saliency.EMPTY),
    (np.eye(4, 5), np.ones((4, 5), bool), saliency.FULL),
  ],
)
def test_undefined_with_a_reason(heat, mask, reason):
  found, why = score(heat, mask)
  assert why == reason
  assert np.isnan(list(found.values())).all()


def test_maps_of_noise_are_at_chance():
  rng = np.random.default_rng(0)
  masks = np.zeros((400, 16, 16), bool)
  for mask in masks:
    y, x, h, w = rng.integers(2, 8, 4)
    mask[y : y + h, x : x + w] = True
  found = saliency.score_maps(rng.random((400, 16, 16)), masks)
  for name in saliency.MEASURES:
    values, chance = found.values[name], found.chance[name]
    error = (values - chance).std() / np.sqrt(400)
    assert abs((values - chance).mean()) < 4 * error + 0.002, name
