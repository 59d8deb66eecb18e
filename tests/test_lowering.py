"""Every recipe lowers for a GPU and for a TPU, which need not be there."""

import lowered
import pytest

from cxrjax.core.target import Target
from cxrjax.training import compile_ahead
from cxrjax.training.sharding import make_mesh

PLATFORMS = ("cuda", "tpu")
CONFIGS = lowered.training_configs()
ENCODERS = (
  "finetune:paper,model=Ti",
  "finetune:paper,model=B",
  "finetune:paper,model=vitae",
  "simclr:paper,model=resnet18",
  "simclr:paper,model=resnet50",
  "simclr:paper,model=resnet101",
  "simclr:paper,model=densenet121",
  "simclr:paper,model=densenet201",
  "simclr:paper,model=inception,image_size=299,store=320",
)


def test_the_training_configs_are_known():
  assert {"dino", "gmml", "mae", "simclr", "finetune", "segment"} <= set(CONFIGS)


def assert_lowers(text, platform):
  config = lowered.get_config(text)
  mesh = make_mesh()
  target = Target(platform, mesh=mesh)
  with lowered.elsewhere():
    for program in (compile_ahead.train_step, compile_ahead.eval_step):
      text = program(config, mesh, target=target).lower(lowering_platforms=(platform,)).as_text()
      assert "stablehlo" in text
      # Not a CPU's program under another name: activations of networks are in bfloat16.
      assert "xbf16>" in text


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", CONFIGS)
def test_small_lowers(name, platform):
  assert_lowers(f"{name}:small", platform)


@pytest.mark.full
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", CONFIGS)
def test_paper_lowers(name, platform):
  assert_lowers(f"{name}:paper", platform)


@pytest.mark.full
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("text", ENCODERS)
def test_encoder_lowers(text, platform):
  assert_lowers(text, platform)
