"""A whole comparison in one process: runs, what stands in the tables, resuming, failing."""

import csv
import json
import shlex

import pytest
from pages import Checked
from small import REPOSITORY, lines

from cxrjax.config import overrides
from cxrjax.config.config_files import load_config
from cxrjax.core.errors import UserError
from cxrjax.studies import comparison_plan, launcher
from cxrjax.tasks import compare, train

PATH = REPOSITORY / "configs" / "compare.py"


def config(arg="tiny,methods=dino+mae"):
  return load_config(PATH)(arg).to_dict()


def rows(workdir):
  with open(workdir / "table.csv", newline="") as opened:
    return list(csv.DictReader(opened))


class Here:
  """Runs take place in this process, one method is broken: a start costs seconds."""

  def __init__(self):
    self.launched = []

  def __call__(self, job, workdir, failed):
    self.launched.append(job.name)
    failed.pop(job.name, None)
    try:
      if job.method == "simclr":
        raise UserError("config.batch_size=8 is too cold")
      (workdir / job.name).mkdir(exist_ok=True)
      train.run(job.config, workdir / job.name, job.command(workdir), say=lambda line: None)
    except UserError as error:
      failed[job.name] = str(error)


ARG = "tiny,methods=mae+simclr,points=2"


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
  """A method that ends and one that does not."""
  here, said = Here(), []
  workdir = tmp_path_factory.mktemp("compare") / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(launcher, "launch", here)
    status = compare.run(config(ARG), workdir, "the command", say=said.append)
  assert here.launched == ["mae-seed0", "simclr-seed0"]
  return workdir, "\n".join(said), status


@pytest.mark.full
def test_says_what_was_compared_and_what_failed(compared):
  workdir, said, status = compared
  assert status == 1
  assert "data      48 images" in said and "budget    6.25e+08 forward FLOPs each" in said
  assert "failed    simclr-seed0: config.batch_size=8 is too cold" in said
  assert "thumbnail floor" in said
  assert said.endswith(f"report    {workdir / 'report.html'}")


@pytest.mark.full
def test_the_tables_numbers_are_the_runs_own(compared):
  workdir, _, _ = compared
  found = rows(workdir)
  assert [(r["method"], r["head"]) for r in found] == [
    ("mae", "knn20"),
    ("mae", "whitened20"),
    ("mae", "linear"),
    ("simclr", ""),
  ]
  for row in found[:3]:
    own = workdir / f"{row['method']}-seed0"
    last = {r["encoder"]: r["metrics"] for r in lines(own, "eval")}
    metric = f"{row['head']}/auroc"
    for encoder in ("trained", "random"):
      for key, end in (("value", ""), ("low", "_low"), ("high", "_high")):
        value = last[encoder][metric][key]
        assert float(row[encoder + end]) == pytest.approx(value, rel=1e-5)
    gain = last["trained"][metric]["value"] - last["random"][metric]["value"]
    assert float(row["gain"]) == pytest.approx(gain, abs=1e-5)
    assert float(row["gain_low"]) <= float(row["gain"]) <= float(row["gain_high"])
    assert float(row["floor"]) == pytest.approx(last["floor"]["linear/auroc"]["value"], rel=1e-5)
    facts = json.loads((own / "run.json").read_text())
    assert float(row["peak_rss_bytes"]) == pytest.approx(facts["memory"]["peak_rss_bytes"], 1e-5)
    assert float(row["peak_rss_bytes"]) > 1e8
    assert int(row["steps"]) == facts["steps"] and float(row["epochs"]) > 0
  linear = found[2]
  assert float(linear["over_floor"]) == pytest.approx(
    float(linear["trained"]) - float(linear["floor"]), abs=1e-5
  )
  assert found[3]["status"] == "failed" and found[3]["why"] == "config.batch_size=8 is too cold"


@pytest.mark.full
def test_the_course_ends_with_the_budget(compared):
  found = json.loads((compared[0] / "run.json").read_text())["compare"]
  points = found["rows"][0]["sets"]["probe"]["knn20"]["course"]
  assert len(points) == 3 and points[0][0] == 0
  assert points[-1][0] == pytest.approx(found["budget"], rel=0.02)


def test_all_have_the_same_budget():
  jobs = comparison_plan.plan(config("tiny,methods=gmml+rgmim+simclr,seeds=1;2"))
  assert [j.name for j in jobs] == [
    "gmml-seed1",
    "gmml-seed2",
    "rgmim-seed1",
    "rgmim-seed2",
    "simclr-seed1",
    "simclr-seed2",
  ]
  assert [j.config["seed"] for j in jobs] == [1, 2] * 3
  for job in jobs:
    step = job.flops_per_image * job.batch_size
    assert abs(job.steps * step - job.budget) <= step / 2
    assert job.config["duration"] == f"{job.steps} steps" and job.examples == 48
  assert len({j.budget for j in jobs}) == 1
  # A masked encoder sees a quarter of the patches: more images for the same.
  assert jobs[2].steps > 3 * jobs[0].steps


@pytest.mark.full
def test_the_page(compared):
  text = (compared[0] / "report.html").read_text()
  words = " ".join("".join(Checked(text).text).split())
  assert "could not be drawn" not in words and "Some files could not be read" not in words
  for said in (
    "1 run trained ViT-Nu/8",
    "48 radiographs",
    "625 MFLOP",
    "Research use only",
    "simclr failed: config.batch_size=8 is too cold",
    "by linear probe",
    "the command",
    "--config=",
    "Peak memory",
  ):
    assert said in words, said


@pytest.mark.full
def test_a_row_can_be_repeated_by_hand(compared):
  """What the command makes is what the run was."""
  for row in rows(compared[0])[:1]:
    program, module, name, *flags = shlex.split(row["command"])
    assert (program, module, name) == ("python", "-m", "cxrjax.main")
    path, _, arg = flags[0].removeprefix("--config=").partition(":")
    flags[0] = f"--config={REPOSITORY / path}:{arg}"
    own = compared[0] / f"{row['method']}-seed0" / "config.json"
    assert json.loads(json.dumps(overrides.resolve(flags[:-1]))) == json.loads(own.read_text())


@pytest.mark.full
def test_again_skips_what_is_done_and_more_can_be_added(compared, monkeypatch):
  workdir, _, _ = compared
  here = Here()
  monkeypatch.setattr(launcher, "launch", here)
  before = rows(workdir)
  assert compare.run(config(ARG), workdir, "the command", say=lambda line: None) == 1
  assert here.launched == ["simclr-seed0"]
  assert rows(workdir) == before
  assert compare.run(config("tiny,methods=mae,points=2"), workdir, say=lambda line: None) == 0
  assert here.launched == ["simclr-seed0"]
  with pytest.raises(UserError, match=r"config\.budget: '4 steps of dino' -> '1e9'"):
    compare.run(config(f"{ARG},budget=1e9"), workdir, say=lambda line: None)


@pytest.mark.parametrize(
  "arg, message",
  [
    ("tiny,methods=dino+maee", r"methods=maee is not known; did you mean 'mae'"),
    ("tiny,budget=much", r"config.budget='much' is no budget"),
    ("tiny,budget=4 steps of byoll", "is no budget"),
    ("tiny,budget=many steps of byol", "config.budget='many steps' is not a duration"),
    ("tiny,budget=1", "less than one step of dino"),
    ("tiny,budget=-1e9", "must be above 0"),
    ("tiny,points=0", "config.points=0"),
    ("tiny,seeds=0;one", "config.seeds='one' is no seed"),
    ("tiny,methods=mae,model=resnet18,budget=1e9", "config.m"),
    ("tiny,args.dino=colour=red", "colour=red is not an option"),
    ("tiny,args.dino", "args.dino lacks its value"),
    ("tiny,lr=1", "lr=1 is not an option"),
  ],
)
def test_mistakes_are_one_line(tmp_path, arg, message):
  with pytest.raises(UserError, match=message) as error:
    compare.run(
      config(arg if "methods" in arg else f"{arg},methods=dino"),
      tmp_path / "run",
      say=lambda line: None,
    )
  assert "\n" not in str(error.value)


def test_the_config_hands_on_what_is_common():
  found = config(
    "small,data=folder:/a,eval_data=folder:/b+tfds:c/d,manual_dir=/m,model.patch_size=16,"
    "data.csv=l.csv,args.rgmim=method.lung_ratio=0.5;lr=1e-3,methods=rgmim+moco2,seeds=0;1"
  )
  assert found["seeds"] == ("0", "1")
  args = {name: arg.split(",") for name, _, arg in found["methods"]}
  assert list(args) == ["rgmim", "moco2"]
  for name, own in args.items():
    assert {
      "small",
      "data=folder:/a",
      "manual_dir=/m",
      "model.patch_size=16",
      "data.csv=l.csv",
      "model=Mu",
    } <= set(own), name
  assert (
    args["rgmim"][-2:] == ["method.lung_ratio=0.5", "lr=1e-3"]
    and "method.version=2" in args["moco2"]
  )
  made = load_config("rgmim")(",".join(args["rgmim"]))
  assert set(made.evals) == {"b", "d"} and made.model.patch_size == 16
  assert made.optimizer.lr.start == 1e-3


def test_papers_of_resnets_get_a_vits_optimizer():
  def args(arg):
    return {name: own for name, _, own in config(arg)["methods"]}

  vit, cnn = args("paper,methods=byol+dino"), args("paper,methods=byol,model=resnet50")
  assert "optimizer=adamw" in vit["byol"] and "optimizer=adamw" not in vit["dino"] + cnn["byol"]


@pytest.mark.parametrize("preset", ["", "small", "paper", "tiny"])
def test_every_method_takes_its_arguments(preset):
  for name, file, arg in config(preset)["methods"]:
    made = load_config(REPOSITORY / "configs" / file)(arg)
    assert made.task == "cxrjax.tasks.train", name


def test_epochs_become_shares_of_the_run():
  config = {
    "duration": "20 epochs",
    "batch_size": 8,
    "log_every": "1 epochs",
    "optimizer": {"lr": {"warmup": "2 epochs"}, "freeze": (("head", "1 epochs"), ("x", "3 %"))},
    "method": {"name": "1 epoch of what", "temp": {"warmup": "0 epochs"}, "queue": 4},
  }
  assert comparison_plan.epochs_as_shares(config, 48) == {
    "optimizer.lr.warmup": "10 %",
    "optimizer.freeze": (("head", "5 %"), ("x", "3 %")),
  }


def test_averages_keep_their_length_as_a_share_of_the_run():
  config = {
    "duration": "10 epochs",
    "batch_size": 8,
    "method": {"momentum": {"start": 0.99, "end": 1.0}},
  }
  of = lambda steps: comparison_plan.averages_as_shares(config, 80, steps)  # noqa: E731
  assert of(100) == {"method.momentum.start": 0.99}  # as long as the recipe's own
  found = of(25)["method.momentum.start"]
  assert found == pytest.approx(0.99**4, abs=1e-6)
  # What is left of the first network after a tenth of the run.
  assert found**2.5 == pytest.approx(0.99**10, rel=1e-4)
  config["method"]["momentum"]["end"] = 0.99
  assert of(50) == {f"method.momentum.{end}": pytest.approx(0.9801) for end in ("start", "end")}
  config["method"]["momentum"] = 0.5
  assert of(25) == {}
