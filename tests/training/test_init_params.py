"""What an encoder starts from, and what is said of it."""

import finished
import numpy as np
import pytest

from cxrjax.config.config_files import load_config
from cxrjax.config.instantiate import build
from cxrjax.training import init_params


@pytest.mark.parametrize("classes", [("normal", "opacity"), ("tuberculosis", "healthy")])
def test_a_classifiers_head_is_not_used_and_this_is_said(tmp_path, classes):
  config = load_config("finetune")("tiny").to_dict()
  config["model"] |= {"width": 32, "depth": 1, "heads": 2}
  config["evals"] = {}
  finished.network(tmp_path / "run", config, classes)
  config["init"] = {"path": str(tmp_path / "run")}
  encoder = build(config["model"], "Model", "config.model")
  params, facts = init_params.start(config, encoder)
  assert np.isfinite(params["patch"]["kernel"]).all()
  said = facts["init"]["summary"]
  assert "1 left (head/*)" in said
  assert f"its head for {', '.join(classes)} is not used; the new head starts from scratch" in said
