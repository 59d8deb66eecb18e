"""Every key of every config with its meaning and origin; and the config printed as a file."""

import pathlib

import pytest

from cxrjax.config import config_files, describe, overrides
from cxrjax.core import package_folders
from cxrjax.core.errors import UserError

CONFIGS = config_files.config_names()
NEEDED = {"explain": "runs=a", "compare_runs": "runs=a+b"}  # without which they make no sense


def loaded(text, tmp_path):
  file = tmp_path / "saved.py"
  file.write_text(text)
  return overrides.resolve([f"--config={file}"])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("preset", ["", "tiny"])
def test_every_key_has_a_meaning_and_an_origin_and_the_printed_file_is_the_config(
  name, preset, tmp_path
):
  arguments = [f"--config={name}:{','.join(filter(None, [preset, NEEDED.get(name)]))}"]
  keys = describe.describe(arguments)
  assert [key.name for key in keys if not key.meaning] == []
  assert [key.name for key in keys if not key.origin] == []
  assert loaded(describe.as_file(arguments, "A test."), tmp_path) == overrides.resolve(arguments)


def test_origins():
  arguments = ["--config=dino:small,lr=1e-3,method.hidden=96", "--config.seed=7"]
  keys = {key.name: key for key in describe.describe(arguments)}
  assert keys["method.prototypes"].origin == "preset small"
  assert keys["optimizer.lr.start"].origin == "lr=1e-3"
  assert keys["optimizer.lr.start"].value == 1e-3
  assert keys["method.hidden"].origin == "method.hidden=96"
  assert keys["seed"].origin == "--config.seed=7"
  for name in ("data.near_duplicates", "data.fit", "optimizer.freeze"):
    file, line = keys[name].origin.rsplit(":", 1)
    text = (package_folders.PACKAGE.parent / file).read_text().splitlines()[int(line) - 1]
    assert name.rpartition(".")[2] in text


def test_a_printed_file_keeps_what_is_shared(tmp_path):
  file = tmp_path / "saved.py"
  file.write_text(describe.as_file(["--config=dino:small"], "A test."))
  config = overrides.resolve([f"--config={file}", "--config.model.image_size=48"])
  assert config["views"]["global_size"] == config["evals"]["probe"]["size"] == 48


def test_a_printed_file_holds_whatever_was_typed(tmp_path):
  """Quotes and backslashes in the command, and evaluators whose names are no names of Python."""
  arguments = [
    "--config=dino:data=folder:a,eval_data=mini+folder:x/2020",
    r"--config.data.subset=\N",
  ]
  text = describe.as_file(arguments, f'Config of """{arguments[1]}"\nimport nothing')
  config = loaded(text, tmp_path)
  assert config == overrides.resolve(arguments)
  assert "2020" in config["evals"] and config["data"]["subset"] == r"\N"


def test_meanings_are_those_of_the_class_and_of_its_bases():
  keys = {key.name: key.meaning for key in describe.describe(["--config=bke"])}
  assert keys["method.omega"].startswith("weight of other images in the targets")
  assert keys["method.smoothing"] != ""  # of classify.Method
  assert keys["optimizer.clip"].startswith("largest L2 norm")


def test_the_table_names_what_a_key_follows():
  table = describe.as_table(describe.describe(["--config=dino"]))
  assert "--config.views.global_size=48 (as evals.probe.size)  int" in table


@pytest.mark.parametrize(
  "argument, value",
  [
    ("dino:small,views.global_scale=(0.14, 1.0)", (0.14, 1.0)),
    ("dino:views.global_scale=(0.14,1.0),small", (0.14, 1.0)),
    ("dino:small", (0.4, 1.0)),
  ],
)
def test_a_key_after_the_colon_is_a_flag(argument, value):
  assert overrides.resolve([f"--config={argument}"])["views"]["global_scale"] == value


@pytest.mark.parametrize(
  "arguments",
  [
    ["--config=dino:method.teacher_temp=0.05,optimizer.lr=1e-3"],
    ["--config=dino", "--config.method.teacher_temp=0.05", "--config.optimizer.lr=0.001"],
  ],
)
def test_a_number_for_a_schedule_makes_it_constant(arguments, tmp_path):
  config = overrides.resolve(arguments)
  assert config["method"]["teacher_temp"] == 0.05 and config["optimizer"]["lr"] == 1e-3
  keys = {key.name: key for key in describe.describe(arguments)}
  assert keys["method.teacher_temp"].origin.endswith("method.teacher_temp=0.05")
  assert loaded(describe.as_file(arguments, "A test."), tmp_path) == config


def test_a_truth_value_is_no_number():
  config = overrides.resolve(["--config=dino:tiny", "--config.model.remat=True"])
  assert config["model"]["remat"] is True


def test_keys_of_the_data_and_options_of_its_source():
  arguments = ["--config=dino:data=folder:x,data.csv=a.csv,data.fit=pad"]
  config = overrides.resolve(arguments)
  assert config["data"]["fit"] == "pad" and config["data"]["options"] == {"csv": "a.csv"}


def test_a_study_hands_keys_on_to_its_runs():
  config = overrides.resolve(["--config=label_efficiency:method.mixup=0.3,seeds=0"])
  assert "method.mixup=0.3" in config["arg"] and config["seeds"] == ("0",)
  run = overrides.resolve([f"--config=finetune:{config['arg']}"])
  assert run["method"]["mixup"] == 0.3


@pytest.mark.parametrize(
  "argument, message",
  [
    ("dino:method.hiden=3", "hidden"),
    ("dino:method.hidden=many", "method.hidden"),
    ("dino:methid.hidden=3", "methid.hidden=3 is not an option"),
  ],
)
def test_mistakes_in_a_key_after_the_colon(argument, message):
  with pytest.raises(UserError, match=message):
    overrides.resolve([f"--config={argument}"])


def test_commas_within_brackets_and_quotes_do_not_separate():
  from cxrjax.config.args import split_items

  assert split_items("a,b=(1, [2,3]),c='x,y',d=") == ["a", "b=(1, [2,3])", "c='x,y'", "d="]
  assert split_items(None) == split_items("") == split_items(",") == []


def test_the_folder_of_a_run_keeps_its_config(tmp_path):
  import cxrjax

  folder = cxrjax.train("audit:tiny", "--config.shown=3", workdir=tmp_path / "audit")
  assert folder == tmp_path / "audit" and (folder / "audit.html").is_file()
  kept = loaded((folder / "config.py").read_text(), tmp_path)
  assert kept["shown"] == 3
  assert kept == overrides.resolve(["--config=audit:tiny", "--config.shown=3"])


def test_a_mistake_ends_train_before_anything_is_written(tmp_path):
  import cxrjax

  with pytest.raises(UserError, match="did you mean 'audit'"):
    cxrjax.train("audti", workdir=tmp_path / "a")
  assert not pathlib.Path(tmp_path / "a").exists()
