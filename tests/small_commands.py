"""Stands in for `python`, `pip`, `git`, ... where a test runs a document's commands.

    python tests/small_commands.py TOOL ARGUMENTS...

The table of what is not as printed:

| printed | run |
|---|---|
| presets `small`, `paper` and `strong`, or none | `tiny`: four steps (of sweeps: as printed) |
| options in `SCALE` | left out: `tiny` has its own (of sweeps: as printed) |
| `tfds:NAME`, `folder:ANY`, `/my/radiographs` | a folder of 144 drawn radiographs |
| a source with lung masks, `eval_data=tfds:NAME`, all sources of sweeps | the phantom |
| `subset=10 %` | `50 %` |
| `manual_dir=`, `site=`, `split=all` | left out |
| ViT `Nu` | 32 wide, one block |
| a workdir that a command reads and none has written | a run of four steps, see `RUNS` |
| a command that was run before, but for its workdir | the workdir of then |
| runs of `compare`, `label_efficiency`, `sweep`, the curricula | made up; the rest is real |
| `python -m venv`, `pip`, `git`, `unzip`, `tfds`, `zensical`, `ruff` | arguments checked |
| `python -m pytest`, `python benchmarks/X.py` | files and flags must exist |
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys
import tomllib

HERE = pathlib.Path(__file__).parent
REPOSITORY = HERE.parent
SCALE = (
  "duration",
  "eval_every",
  "image_size",
  "store",
  "batch_size",
  "model.width",
  "model",
  "model.patch_size",
  "data.n",
  "model.standardize",
)
# Workdirs that documents name, and what makes one; the first word is the config.
RUNS = {
  "dino": "dino:data=folder:PATH",
  "gmml": "dino:data=folder:PATH",
  "scratch": "finetune:data=folder:PATH",
  "a": "finetune:data=folder:PATH",
  "finetune": "finetune:data=folder:PATH,init=runs/dino",
  "b": "finetune:data=folder:PATH,init=runs/dino",
  "lungs": "segment:",
}
MASKED = ("segment", "rgmim")
KEY = ".made-by"
PROVIDED = ".provided"
SEVERAL = ("compare", "label_efficiency", "spcxr", "sstl", "curriculum", "dino_cxr", "sweep")


def shared() -> pathlib.Path:
  return pathlib.Path(os.environ["CXRJAX_DOCS_SHARED"])


def smaller_argument(config: str, argument: str) -> str:
  """What stands behind the colon of `--config=configs/X.py:`."""
  sweep = config in SEVERAL
  folder = f"folder:{shared() / 'radiographs'}"
  kept = [] if sweep else ["tiny"]
  given = set()
  from cxrjax.config.args import split_items

  for item in split_items(argument):
    key, equals, value = item.partition("=")
    given.add(key)
    if key in ("manual_dir", "site") or item == "split=all":
      continue
    if not sweep and (item in ("small", "paper", "strong", "tiny") or key in SCALE):
      continue
    if key == "subset" and value.endswith("%") and not sweep:
      kept.append("subset=50 %")
    elif key == "data" and value != "phantom" and ":" in value:
      kept.append(f"data={'phantom' if sweep or config in MASKED else folder}")
    elif value.startswith(("tfds:", "folder:")):
      kept.append(f"{key}=phantom")
    else:
      kept.append(f"{key}{equals}{value}")
  if sweep and given & {"small", "paper"}:  # they have real sets
    kept += [
      f"{key}=phantom"
      for key in ("data", "eval_data")
      if key not in given and (key == "data" or config == "compare")
    ]
  return ",".join(kept)


def smaller(arguments: list[str]) -> tuple[list[str], str | None]:
  """Flags of `python -m cxrjax.main`, made small, without the workdir; and that."""
  kept, workdir = [], None
  for flag in arguments:
    name, _, value = flag.partition("=")
    if name == "--workdir":
      workdir = value
    elif name == "--config" and value.startswith("configs/"):
      path, _, argument = value.partition(":")
      kept.append(f"--config={path}:{smaller_argument(pathlib.Path(path).stem, argument)}")
    else:
      kept.append(flag)
  for run in re.findall(r"runs/[\w/-]+", " ".join(kept)):
    provide(run)
  return kept, workdir


def provide(run: str) -> None:
  """Puts a finished run at `runs/NAME` where there is none."""
  place = pathlib.Path(run)
  name = place.name.split("-seed")[0].split("_")[0]
  if not place.exists() and name in RUNS:
    config, _, argument = RUNS[name].partition(":")
    flags, _ = smaller([f"--config=configs/{config}.py:{argument}"])
    copy(once(flags), place)
    (place / PROVIDED).touch()


def copy(run: pathlib.Path, place: pathlib.Path) -> None:
  """A run of its own for the document, which may go on with it."""
  shutil.copytree(run, place, dirs_exist_ok=True)
  (place / KEY).write_text(run.parent.name)


def known(run: str) -> str:
  """The key of the command that made a run, else its name."""
  file = pathlib.Path(run) / KEY
  return file.read_text() if file.exists() else run


def once(flags: list[str]) -> pathlib.Path:
  """The workdir of a command, which is run where no document has run it before."""
  found = [re.sub(r"runs/[\w/-]+", lambda m: known(m[0]), flag) for flag in flags]
  devices = "device_count" in os.environ.get("XLA_FLAGS", "")
  key = hashlib.sha256(json.dumps([found, devices]).encode()).hexdigest()[:16]
  folder = shared() / "runs" / key
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / "lock", "a") as handle:
    fcntl.flock(handle, fcntl.LOCK_EX)
    if (folder / "done").exists():
      sys.stdout.write(f"(as before: {' '.join(found)})\n")
    else:
      child = os.fork()
      if not child:
        program("cxrjax.main", [*flags, f"--workdir={folder / 'run'}"])
      _, status = os.waitpid(child, 0)
      if status:
        sys.exit(os.waitstatus_to_exitcode(status) or 1)
      (folder / "done").touch()
  return folder / "run"


def small_networks() -> None:
  from cxrjax.models import vit

  vit.VARIANTS["Nu"] = (32, 1, 2)


def program(module: str, arguments: list[str]) -> None:
  """`python -m module`, in this process, with a small network and made-up runs in sweeps."""
  import importlib

  from cxrjax.core.errors import UserError
  from cxrjax.studies import launcher

  if any(f"configs/{name}.py" in " ".join(arguments[:1]) for name in SEVERAL):
    launcher.launch = made_up
  else:
    small_networks()
  sys.argv = [module, *arguments]
  status: object = 0
  try:
    importlib.import_module(module).run()
  except SystemExit as error:
    status = error.code or 0
  except UserError as error:
    sys.stderr.write(f"error: {error}\n")
    status = 2
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status if isinstance(status, int) else 1)


def made_up(job, workdir, failed):
  """In place of `cxrjax.studies.launcher.launch`."""
  sys.path.insert(0, str(HERE))
  import finished

  failed.pop(job.name, None)
  method = job.config["method"]["name"].rpartition(".")[2]
  if method in ("classify", "mean_teacher", "bke"):
    evaluator = "test" if "test" in job.config["evals"] else "validation"
    seed = job.config["seed"]
    finished.classify(workdir / job.name, job.config, 1.0 + seed, seed, evaluator=evaluator)
  elif method == "segment":
    finished.segment(workdir / job.name, job.config, 1.0, job.seed)
  else:
    folder = workdir / job.name
    shutil.copytree(pathlib.Path("runs/dino").resolve(), folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps(job.config, default=lambda item: item.to_dict()))


def python(arguments: list[str]) -> None:
  match arguments:
    case ["-m", "venv", folder]:
      scripts = pathlib.Path(folder) / "bin"
      scripts.mkdir(parents=True, exist_ok=True)
      (scripts / "activate").touch()
    case ["-m", "pytest", *rest]:
      for path in (a for a in rest if a.startswith("tests/")):
        require(path.partition("::")[0])
    case ["-m", "cxrjax.main", *flags]:
      main(flags)
    case ["-m", "cxrjax", "train", config, *flags]:
      main([f"--config=configs/{config.replace(':', '.py:', 1)}", *flags])
    case ["-m", "cxrjax", "configs" | "folder", *_]:
      program("cxrjax.__main__", arguments[2:])
    case ["-m", "cxrjax", command, *flags]:
      python(["-m", f"cxrjax.{command}", *flags])
    case ["-m", module, *flags]:
      flags = [f.replace("/my/radiographs", str(shared() / "radiographs")) for f in flags]
      for run in re.findall(r"runs/[\w/-]+", " ".join(flags)):
        provide(run)
      program(module, flags)
    case [script, *flags] if script.startswith("benchmarks/"):
      text = require(script).read_text()
      for flag in flags:
        name = flag.partition("=")[0].lstrip("-")
        if name not in text and name.replace("-", "_") not in text:
          sys.exit(f"{script} has no {flag}")
    case _:
      sys.exit(f"a document runs python {' '.join(arguments)}, which small_commands.py cannot")


def main(arguments: list[str]) -> None:
  flags, workdir = smaller(arguments)
  if any(f"configs/{name}.py" in flags[0] for name in SEVERAL):
    provide("runs/dino")
  if workdir and (pathlib.Path(workdir) / PROVIDED).exists():  # the document makes its own
    shutil.rmtree(workdir)
  if workdir is None or not pathlib.Path(workdir).exists():
    run = once(flags)
    if workdir:
      copy(run, pathlib.Path(workdir))
  else:  # once more: it goes on, or says that it is finished
    program("cxrjax.main", [*flags, f"--workdir={pathlib.Path(workdir).resolve()}"])


def code(arguments: list[str]) -> None:
  """A block of Python."""
  text = arguments[0]
  for run in re.findall(r"runs/[\w/-]+", text):
    provide(run)
  small_networks()
  exec(compile(text, "block", "exec"), {"__name__": "__main__"})


def pip(arguments: list[str]) -> None:
  project = tomllib.loads(require("pyproject.toml").read_text())["project"]
  extras = set(project["optional-dependencies"])
  for asked in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
    if missing := set(asked.split(",")) - extras:
      sys.exit(f"pyproject.toml has no extra {missing}; there are {sorted(extras)}")


def git(arguments: list[str]) -> None:
  if arguments[0] == "clone":
    pathlib.Path(arguments[-1] if len(arguments) > 2 else "cxrjax").symlink_to(".")


def tool(name: str, arguments: list[str]) -> None:
  """Files that it is given must exist."""
  for path in (a for a in arguments if a.endswith((".ipynb", ".py"))):
    require(path)


def require(path: str) -> pathlib.Path:
  found = pathlib.Path(path)
  if not found.exists():
    sys.exit(f"{path} does not exist")
  return found


if __name__ == "__main__":
  sys.path.insert(0, str(REPOSITORY))
  called, *rest = sys.argv[1:]
  own = {
    "python": python,
    "pip": pip,
    "git": git,
    "code": code,
    "cxrjax": lambda arguments: python(["-m", "cxrjax", *arguments]),
  }
  if called in own:
    own[called](rest)
  else:
    tool(called, rest)
