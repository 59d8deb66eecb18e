"""Parts of the user's own, by name, in what follows the colon; nothing of them is imported yet."""

import pytest

from cxrjax.config import overrides
from cxrjax.core.errors import UserError


def resolve(arg):
  return overrides.resolve([f"--config={arg}"])


@pytest.mark.parametrize("preset", ["tiny", "small", "paper"])
def test_a_method_takes_the_place_of_the_configs(preset):
  config = resolve(f"simclr:{preset},method=mine.vicreg:VICReg,method.dim=64,method.dims=1;2")
  assert config["method"] == {"name": "mine.vicreg:VICReg", "dim": 64, "dims": (1, 2)}
  assert config["views"] == resolve(f"simclr:{preset}")["views"]


@pytest.mark.parametrize("file", ["simclr", "finetune"])
def test_an_evaluator_reads_images_as_the_others_do(file):
  config = resolve(f"{file}:tiny,evals.mine=ev:Mine,evals.mine.k=3,image_size=24")
  mine = config["evals"].pop("mine")
  other = config["evals"]["probe" if file == "simclr" else "validation"]
  assert (mine["name"], mine["k"], mine["size"]) == ("ev:Mine", 3, 24)
  for key in ("size", "mean", "std", "fit", "bits", "window", "on_bad_image", "every"):
    assert mine[key] == other[key], key
  assert mine["data"]["name"] == other["data"]["name"] == "phantom"


def test_an_evaluator_whose_images_are_a_folders():
  mine = resolve("simclr:tiny,evals.mine=ev:Mine,data=folder:/x")["evals"]["mine"]
  assert mine["data"] == {"name": "folder:/x"}
  other = resolve("simclr:tiny,evals.mine=ev:Mine,evals.mine.every=2 steps")["evals"]["mine"]
  assert other["every"] == "2 steps"


def test_sections_and_writers_are_several():
  config = resolve("simclr:tiny,sections=page:rows,writers=wandb;mine:Writer")
  assert config["sections"] == ("page:rows",) and config["writers"] == ("wandb", "mine:Writer")


@pytest.mark.parametrize("key", ["evals.mine.k=3", "methods=mine", "method.dimm=3"])
def test_a_key_of_nothing_is_an_error(key):
  with pytest.raises(UserError, match=rf"{key} is not an option"):
    resolve(f"simclr:tiny,{key}")
