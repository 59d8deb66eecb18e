"""What stands after the colon, and the config it makes."""

import pathlib

import pytest

from cxrjax.config import presets, recipe
from cxrjax.config.config_files import load_config
from cxrjax.config.instantiate import build
from cxrjax.core.durations import Clock
from cxrjax.core.errors import UserError

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def load(name):
  return load_config(CONFIGS / f"{name}.py")


def config(arg):
  c = recipe.pretraining()
  c.views = {"name": "cxrjax.views.multicrop", **recipe.pixels(c)}
  c.method = {"depth": 3, "temp": {"start": 0.1, "end": 0.2}}
  small, tiny = {"method.depth": 5}, {"method.depth": 1}
  return presets.apply(c, arg, demo={"lr": 0.1}, small=small, tiny=tiny)


def test_presets_then_typed_keys():
  made = config("")
  assert made.method.depth == 3 and made.optimizer.lr.start == 0.1
  made = config("small,method.depth=7,seed=2")
  assert (made.method.depth, made.seed) == (7, 2)
  assert made.optimizer.lr.start == recipe.PRESETS["small"]["lr"]
  assert made.data.size == recipe.PRESETS["small"]["store"]
  assert config("tiny").block == 2
  assert config("paper").to_dict() == config("paper,seed=0").to_dict()
  assert config("paper").model.variant == "S" and config("paper").optimizer.lr.start == 5e-4


@pytest.mark.parametrize(
  "typed, said",
  [
    ("method.dept=3", r"did you mean 'method\.depth' \(int, 3\)"),
    ("depth=3", r"did you mean 'method\.depth'"),
    ("smal", "did you mean 'small'"),
    ("method.depth=deep", "must be of type int, like 3"),
    ("method.temp=warm", r"a number, which makes it constant; or set method\.temp\.end"),
    ("model.wdth=3", r"did you mean 'model\.width'"),
    ("optimizer=adamm", "did you mean 'adamw'"),
    ("data=folder:/x*two+tfds:y", "'two' is not a weight"),
  ],
)
def test_mistakes_name_the_nearest_key_with_its_type(typed, said):
  with pytest.raises(UserError, match=said):
    config(typed)


def test_there_are_few_aliases_and_each_sets_a_key_of_some_config():
  configs = [load(name)("site=phantom") for name in ("finetune", "segment")]
  assert len(presets.ALIASES) <= 15
  for keys in presets.ALIASES.values():
    names = [key.partition(".*")[0].removesuffix(".manual_dir") for key in keys]
    assert any(presets.has(c, name) for c in configs for name in names), keys


def test_a_number_for_several_probabilities_stands_for_all():
  assert load("dino")("views.blur_prob=0.5").views.blur_prob == 0.5


def test_options_of_the_source():
  made = config("data=folder:/x,data.csv=l.csv,data.label_columns=a b;c,eval_data=tfds:y")
  assert made.data.source == "folder:/x"
  assert made.data.options.to_dict() == {"csv": "l.csv", "label_columns": ("a b", "c")}
  assert made.evals.probe.data.to_dict() == {"name": "tfds:y"}  # another source, other options


def test_several_sources_are_a_mixture():
  made = config("data=folder:/x*2+tfds:y+phantom,manual_dir=m")
  sources = made.data.to_dict()["source"]
  assert sources[0] == {"source": "folder:/x", "weight": 2.0, "options": {}}
  assert sources[1] == {"source": "tfds:y", "options": {"manual_dir": "m"}}
  assert sources[2]["options"]["n"] == 2048
  assert made.data.options.to_dict() == {} and not made.evals


def test_evaluation_of_the_same_source_or_none():
  assert config("").evals.probe.data.name == "phantom"
  assert not config("eval_data=none").evals
  assert not config("data=folder:/x").evals  # it may have no labels
  assert config("data=folder:/x,eval_data=folder:/x").evals.probe.data.name == "folder:/x"


def test_several_sets_judge_each_by_itself():
  made = config(
    "eval_data=tfds:chest_xray_pneumonia+tfds:nlm_tb/shenzhen,manual_dir=m,evals.probe.whiten=True"
  )
  assert {name: e.data.to_dict() for name, e in made.evals.items()} == {
    "chest_xray_pneumonia": {"name": "tfds:chest_xray_pneumonia", "manual_dir": "m"},
    "shenzhen": {"name": "tfds:nlm_tb/shenzhen", "manual_dir": "m"},
  }
  assert all(e.whiten for e in made.evals.values())
  assert set(config("eval_data=folder:/my data/a/+phantom").evals) == {"a", "phantom"}
  with pytest.raises(UserError, match="two sources that would be called 'a'"):
    config("eval_data=folder:/x/a+folder:/y/a")


@pytest.mark.parametrize("model", ["resnet18", "densenet121", "inception", "vitae", "S"])
def test_every_network_by_name(model):
  spec = config(f"paper,model={model}").model.to_dict()
  found = build(spec, "Model", "config.model")
  assert found.features > 300 and found.stride in (16, 32)


@pytest.mark.parametrize("name", ["mae", "rgmim"])
def test_masked_autoencoders_refuse_what_has_no_patches_to_drop(name):
  config = load(name)("tiny,model=resnet18")
  encoder = build(config.model.to_dict(), "Model", "config.model")
  with pytest.raises(UserError, match=r"config\.model\.name='cxrjax\.models\.resnet' cannot drop"):
    build(
      config.method.to_dict(), "Method", "config.method", encoder=encoder, clock=Clock(4, 1.0, 8)
    )


# What the authors' own code does and a run's options do not show, at their sizes and nowhere else.
OPTIMIZER = {
  "decay_vectors": False,
  "clip_per": "tensor",
  "hold": (),
  "lr_rule": "linear",
  "lr_batch": 256,
}
PAPERS = [
  ("mae", "", {}, "next", {}),
  ("moco", "", {"decay_vectors": True}, "next", {"token_std": 1e-6}),
  ("moco", "model=resnet50", {}, "next", {"zero_init": True}),
  ("moco", "method.version=2", {"decay_vectors": True}, "last", {"zero_init": None}),
  ("simsiam", "", {"decay_vectors": True}, "last", {"zero_init": True}),
  ("simsiam", "model=S", {"decay_vectors": True}, "last", {"zero_init": None}),
  ("byol", "", {}, "next", {"zero_init": True}),
  ("simclr", "", {}, "next", {"zero_init": True}),
  ("dino", "", {}, "last", {"token_std": None}),
  ("gmml", "", {}, "last", {"token_std": None}),
  (
    "dinov2",
    "",
    {
      "clip_per": "module",
      "hold": (("head/prototypes", "1 epochs"),),
      "lr_rule": "sqrt",
      "lr_batch": 1024,
    },
    "last",
    {"token_std": 1e-6},
  ),
]


@pytest.mark.parametrize("name, options, optimizer, peak, model", PAPERS)
def test_papers_are_as_their_authors_code(name, options, optimizer, peak, model):
  for preset, wanted in (("paper", OPTIMIZER | optimizer), ("small", OPTIMIZER)):
    made = load(name)(f"{preset},{options}".rstrip(","))
    assert {key: made.optimizer[key] for key in OPTIMIZER} == wanted
    assert made.optimizer.lr.peak == (peak if preset == "paper" else "last")
    for key, value in model.items():
      assert made.model.get(key) == (value if preset == "paper" else None)
  build(made.model.to_dict(), "Model", "config.model")


def test_sit_restores_from_the_last_block_and_gmml_from_four():
  assert load("sit")("paper").method.layers == (1,)
  assert load("gmml")("paper").method.layers == (1 / 2, 2 / 3, 5 / 6, 1)


def test_dinov2s_temperature_and_learning_rate():
  made = load("dinov2")("paper")
  assert made.method.teacher_temp.kind == "linear" and not made.optimizer.freeze
  assert made.optimizer.lr.start == 4e-3


@pytest.mark.parametrize("name", ["dino", "mae", "simclr", "pirl_rotation", "finetune", "segment"])
def test_size_and_normalisation_are_set_once_for_views_positions_and_evaluations(name):
  made = load(name)("tiny")
  made.views.mean, made.views.global_size = 0.449, 24  # as flags do
  evaluation = next(iter(made.evals.values()))
  evaluation.std = 0.226
  for judge in made.evals.values():
    assert (judge.mean, judge.std, judge.size) == (0.449, 0.226, 24)
  assert made.views.std == 0.226 and made.model.get("image_size", 24) == 24
  other = load(name)("tiny,views.mean=0.4,views.std=0.2")
  assert (other.views.mean, next(iter(other.evals.values())).std) == (0.4, 0.2)
