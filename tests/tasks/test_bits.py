"""A whole run on 16-bit radiographs."""

import json

import numpy as np
import pytest
from PIL import Image
from small import losses, tiny

from cxrjax.data import open_source
from cxrjax.tasks import train


@pytest.mark.full
def test_a_run_on_sixteen_bits(tmp_path):
  """PNGs of 12 bits in 16, and a few of 8, decoded once and read from the cache."""
  source, root = open_source("phantom", n=24, size=40), tmp_path / "radiographs"
  root.mkdir()
  for i in range(len(source)):
    image = source[i].image[..., 0]
    image = image if i % 5 == 0 else image.astype(np.uint16) * 12 + np.uint16(400 + i)
    Image.fromarray(image).save(root / f"{i}.png")
  workdir = tmp_path / "run"
  config = tiny(
    data__source=f"folder:{root}",
    data__split="all",
    data__options={},
    data__storage="cached",
    duration="2 steps",
  )
  assert train.run(config, workdir, say=lambda s: None) == 0
  facts = json.loads((workdir / "run.json").read_text())
  assert facts["status"] == "finished" and facts["data"]["train"]["bits"] == 16
  views = np.load(workdir / "figures" / "views.npz")
  for name in ("source", "global", "local"):  # gray levels of 8 bits, whatever was stored
    assert views[name].dtype == np.uint8 and views[name].std() > 20
  assert np.isfinite(losses(workdir)).all()
