"""Description of a config: every key with its value, meaning and origin; and the config as a file.

Meanings are read from the docstring of the class that takes the keys, without importing it. A
value's origin is the last of these that changed it: the line that sets it, a preset or an option
after the colon, a flag.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import keyword
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

from ml_collections import ConfigDict, FieldReference

from cxrjax.config import overrides, presets
from cxrjax.config.args import split_items
from cxrjax.config.config_files import with_config_path
from cxrjax.core import package_folders
from cxrjax.core.errors import UserError
from cxrjax.core.text import escape

# Keys that are not arguments of a class named beside them.
MEANINGS = {
  "task": "what the command does: a module of cxrjax.tasks",
  "seed": "of parameters, order of images and augmentations",
  "duration": "of training: steps, epochs, images or %",
  "batch_size": "images per step, of all devices",
  "accumulate": "microbatches per step, for less memory",
  "block": "most steps per dispatch to the device, where pixels are resident",
  "log_every": "steps between two lines of metrics",
  "data.source": "images to learn from: mini, phantom, folder:PATH, tfds:NAME, or several",
  "data.split": "split to learn from, in TFDS's syntax: train, train[15%:], all",
  "data.options": "options of the source, such as csv and label_columns",
  "data.subset": "part of the images by patient: 10 %, 16 per class; empty: all",
  "data.labelled": "part of the subset whose labels the method may see",
  "data.labelled_share": "labelled share of every batch; 0 draws all images equally often",
  "data.fold": "of a cross-validation, such as `2 of 5`",
  "data.split_seed": "draws subsets and folds",
  "data.size": "pixels per side at which images are kept",
  "data.fit": "squash, pad or crop images to a square",
  "data.bits": "of kept images: 8, 16, or auto, what the files have",
  "data.window": "gray levels shown black and white: auto, full, or low,high",
  "data.repeat": "allow fewer images than a batch has",
  "data.masks": "lung masks: own, zoo:lungs, or a segmentation run's workdir",
  "data.storage": "of pixels: resident on the device, cached, streamed, or auto",
  "data.cache_dir": "folder of decoded images; by default ~/.cache/cxrjax",
  "data.on_bad_image": "error, or skip",
  "data.shared_patients": "if patients are in a test split as well: error, or allow",
  "data.near_duplicates": "correlation above which test images are reported; 0: off",
  "init.path": "start from a finished run's workdir, or from a file of weights",
  "mesh.fsdp": "devices over which parameters are divided",
  "mesh.rules": "(regex, axis) pairs: the parameters that are divided",
  "checkpoint.every": "time between two checkpoints",
  "checkpoint.keep": "number of latest checkpoints kept, beside the best",
  "checkpoint.score": "metric that selects the best checkpoint",
  "health.patience": "evaluations without progress before a run is called diverged",
  "health.grace": "part of the run in which that is not judged",
  "sections": "your own sections of the page, my_package.my_file:function",
  "writers": "where metrics go as well: wandb, mlflow, or your own",
  "explain.images": "test images with saliency maps on the page",
  "explain.lungs": "images over which the saliency on lungs is measured",
  "explain.methods": "of saliency: auto, or names, attention+gradcam",
  # Studies and other tasks.
  "folder": "where the configs of the runs are",
  "seeds": "of the runs",
  "arg": "what follows the colon in the config of every run",
  "methods": "what is compared: name, config, and what follows its colon",
  "file": "the config of all runs",
  "grid": "keys, and the values of each, that are combined",
  "score": "metric in validation that chooses; empty: the config's own `checkpoint.score`",
  "launcher": "of the runs: processes, here (in this process) or commands (printed)",
  "budget": "of each run: forward FLOPs, or a duration of one of the methods",
  "measure": "the method whose duration is the budget",
  "points": "evaluations of each run, besides the one before training",
  "inits": "the starts: name, what it starts from, and what follows its colon",
  "fractions": "of the labels that are learnt from: percents, or `16 per class`",
  "folds": "of a cross-validation, instead of the source's splits",
  "stages": "of a curriculum, in order",
  "each": "also run the last stages from scratch and from every earlier one",
  "runs": "workdirs of finished runs, the reference first: A,B or NAME=A,NAME=B",
  "evals": "evaluators to compare by; empty: all that judged test images",
  "images": "most that are scored, at even steps through the split",
  "shown": "number of examples on the page",
  "target": "the class that is explained; empty: each image's predicted one",
  "tap": "feature maps that class activation maps weight, such as stage:2; empty: the last",
  "probe_images": "training images that a linear probe is fitted to, at most",
  "copy": "correlation of details above which two radiographs are one",
  "same": "correlation of details above which two radiographs are of one patient",
  "first": "correlation of signatures above which two radiographs are compared in detail",
  "looks": "most pairs that are compared in detail",
  "data.sources": "the data sets, with the options of each",
  "data.splits": "the splits that are compared; empty: all",
}
# Arguments of an evaluator, a source and a schedule, whose classes see to more than the key.
_SHARED = {
  "every": "time between two evaluations; `chosen`: once, with the chosen checkpoint",
  "data": "the images, options of their source included",
  "start": "value at the start, after any warm-up",
  "end": "value at the end",
  "warmup": "time of the linear rise from 0, or to `start`",
  "kind": "shape of a schedule: cosine, linear, stairs, ...",
  "lr_batch": "batch size that `lr` is for; 0: for any",
  "lr_rule": "how `lr` follows the batch size: linear, or sqrt",
  "options": "arguments of the transformation, or of the source",
  "peak": "whether the warm-up's last step or the one after it has the full value",
}
_CLASSES = ("Method", "Recipe", "Model", "Evaluator")
# Classes that no `name` in the config tells.
_NESTED = {"corruption": ("views/corruption.py", "Corruption")}
_OPTIMIZER = "training/optimizer.py", "Optimizer"
_BETWEEN = ("ml_collections", "jaxtyping")  # a statement and the record of it
_Path = tuple[tuple[ConfigDict, str], ...]  # the dict and the key at each level, from the top
_ABSENT = object()


@dataclasses.dataclass(frozen=True)
class Key:
  """A key of a config.

  Attributes:
    name: dotted, as in a flag without `--config.`.
    value: plain Python.
    origin: what set it last.
    meaning: one line, empty where none is written.
    same_as: an earlier key that it follows, if any.
  """

  name: str
  value: Any
  origin: str
  meaning: str
  same_as: str = ""


def config_arguments(argv: Sequence[str]) -> list[str]:
  """The flags that choose the config and change its keys; empty where none chooses one."""
  arguments = [arg for arg in with_config_path(argv) if arg.startswith(("--config=", "--config."))]
  return arguments if any(arg.startswith("--config=") for arg in arguments) else []


def describe(argv: Sequence[str]) -> list[Key]:
  """Lists all keys of the config that the flags of `python -m cxrjax.main` select, in order.

  Raises:
    UserError: see `overrides.resolve`.
  """
  arguments = config_arguments(argv)
  with _recorded_lines() as lines:
    config = overrides.load(arguments)
    leaves = dict(_leaves(config))
    origins = {name: _line(lines, path) for name, (path, _) in leaves.items()}
  for origin, earlier, later in _stages(arguments):
    origins |= {
      name: origin
      for name, (_, value) in leaves.items()
      if name in later and later[name] == value and earlier.get(name, _ABSENT) != value
    }
  owners: dict[int, str] = {}  # of a value that several keys share, the first
  keys = []
  for name, (path, value) in leaves.items():
    outer, last = path[-1]
    same_as = name if value is None else owners.setdefault(id(outer.get_ref(last)), name)
    meaning = meaning_of(config, name)
    keys.append(Key(name, value, origins[name], meaning, "" if same_as == name else same_as))
  return keys


def as_table(keys: Sequence[Key]) -> str:
  """The keys as lines of text: name, value and type, origin, meaning."""
  lines = []
  for key in keys:
    value = f"{key.value!r}" if not key.same_as else f"{key.value!r} (as {key.same_as})"
    lines.append(f"--config.{key.name}={value}  {type(key.value).__name__}")
    lines.append(f"    {key.meaning.rstrip('.')}  [{key.origin}]")
  return "\n".join(lines) + "\n"


def aliases_as_table() -> str:
  """The aliases of keys as lines of text, with the keys that each sets."""
  return "".join(f"{name:13}{', '.join(keys)}\n" for name, keys in presets.ALIASES.items())


def as_file(argv: Sequence[str], title: str) -> str:
  """A config file that gives the same config, with the origin of every value; see `describe`."""
  keys = describe(argv)
  lines = [f"# {escape(title)}", "", "from ml_collections import ConfigDict", "", ""]
  lines += ["def get_config():", "  config = ConfigDict()"]
  defined = {""}
  for key in keys:
    parents = key.name.split(".")[:-1]
    for depth in range(1, len(parents) + 1):
      outer = ".".join(parents[:depth])
      if outer not in defined:
        defined.add(outer)
        lines.append(f"  {_in_python(outer)} = ConfigDict()")
    value = repr(key.value)
    if key.same_as:
      owner, _, name = key.same_as.rpartition(".")
      value = f"{_in_python(owner)}.get_ref({name!r})"
    lines.append(f"  {_in_python(key.name)} = {value}  # {escape(key.origin)}")
  return "\n".join([*lines, "  return config", ""])


def _in_python(name: str) -> str:
  """An expression for a dotted name of the variable `config`; evaluators may have any name."""
  words = filter(None, name.split("."))
  return "config" + "".join(
    f".{word}" if word.isidentifier() and not keyword.iskeyword(word) else f"[{word!r}]"
    for word in words
  )


def meaning_of(config: ConfigDict, name: str) -> str:
  """What a key means, in one line; empty where that is written nowhere."""
  if name in MEANINGS:
    return MEANINGS[name]
  words = name.split(".")
  if words[0] == "optimizer":
    shared = _SHARED.get(words[-1], "")
    if len(words) > 2 and shared:  # of a schedule
      return shared
    return _documented(*_OPTIMIZER).get(words[1], "") or _SHARED.get(words[1], "")
  for depth in range(len(words) - 1, 0, -1):
    if words[depth - 1] in _NESTED:
      return _documented(*_NESTED[words[depth - 1]]).get(words[depth], "")
    outer = config
    for word in words[:depth]:
      outer = outer[word]
    module = outer.get("name") if isinstance(outer, ConfigDict) else None
    if isinstance(module, str) and module.startswith("cxrjax."):
      if words[depth] == "name":
        return f"a module of {'.'.join(module.split('.')[:2])}, or your own"
      for file, class_name in _candidates(module):
        meaning = _documented(file, class_name).get(words[depth])
        if meaning:
          return meaning
  return MEANINGS.get(".".join(words[:2]), "") or _SHARED.get(words[-1], "")


@functools.cache
def _documented(file: str, class_name: str) -> dict[str, str]:
  """Attributes of a class in a file of the package, with the first sentence about each."""
  path = package_folders.PACKAGE / file
  if not path.is_file():
    return {}
  for node in ast.parse(path.read_text(encoding="utf-8")).body:
    if isinstance(node, ast.ClassDef) and node.name == class_name:
      inherited: dict[str, str] = {}
      for base in node.bases:
        module, _, name = ast.unparse(base).rpartition(".")  # of the same package, or the same file
        inherited |= _documented(str(path.with_name(f"{module or path.stem}.py")), name)
      return inherited | _attributes(ast.get_docstring(node) or "")
  return {}


def _candidates(module: str) -> Iterator[tuple[str, str]]:
  """Files and classes that a dotted name may refer to: a module's own class, or a named one."""
  file = module.removeprefix("cxrjax.").replace(":", ".").replace(".", "/")
  yield from ((f"{file}.py", class_name) for class_name in _CLASSES)
  outer, _, class_name = file.rpartition("/")
  yield f"{outer}.py", class_name


def _attributes(docstring: str) -> dict[str, str]:
  """The entries of a docstring's `Attributes` or `Args` section, without line breaks."""
  section = re.search(r"^(?:Attributes|Args):\n((?:  .*\n?|\n)*)", docstring, re.MULTILINE)
  entries: dict[str, str] = {}
  for entry in re.split(r"\n(?=  \S)", section[1] if section else ""):
    names, colon, text = entry.strip().partition(":")
    if colon:
      entries |= dict.fromkeys(re.split(r",\s*", names), " ".join(text.split()))
  return entries


def _leaves(config: ConfigDict, parents: _Path = ()) -> Iterator[tuple[str, tuple[_Path, Any]]]:
  """Dotted name of each leaf, with its path of (dict, key) pairs and its value."""
  for key in config:
    path, value = (*parents, (config, key)), config[key]
    if isinstance(value, ConfigDict) and len(value):
      yield from _leaves(value, path)
    else:
      plain = value.to_dict() if isinstance(value, ConfigDict) else value
      yield ".".join(name for _, name in path), (path, plain)


@contextlib.contextmanager
def _recorded_lines() -> Iterator[dict[tuple[int, str], tuple[str, int]]]:
  """Records file and line that set each key of each config built meanwhile, by (id, key)."""
  lines: dict[tuple[int, str], tuple[str, int]] = {}
  set_item = ConfigDict.__setitem__

  def recording(config: ConfigDict, key: str, value: Any) -> None:
    set_item(config, key, value)
    if isinstance(value, FieldReference) and (id(config), key) in lines:
      return  # the same value, made ready to be shared
    frame = inspect.currentframe()
    while frame and _is_between(frame.f_globals.get("__name__", "")):
      frame = frame.f_back
    if frame:
      lines[id(config), key] = frame.f_code.co_filename, frame.f_lineno

  with mock.patch.object(ConfigDict, "__setitem__", recording):
    yield lines


def _is_between(module: str) -> bool:
  return module == __name__ or module.startswith(_BETWEEN)


def _line(lines: Mapping[tuple[int, str], tuple[str, int]], path: _Path) -> str:
  """Where the leaf at the end of a path was set, `FILE:LINE`."""
  for config, key in reversed(path):
    if (id(config), key) in lines:
      file, line = lines[id(config), key]
      line = _dict_keys(file).get((line, path[-1][1]), line)
      root = package_folders.PACKAGE.parent
      is_inside = pathlib.Path(file).is_relative_to(root)
      return f"{pathlib.Path(file).relative_to(root) if is_inside else file}:{line}"
  return ""


@functools.cache
def _dict_keys(file: str) -> dict[tuple[int, str], int]:
  """Line of each key in the dict displays of a file, by first line of the statement and key."""
  keys: dict[tuple[int, str], int] = {}
  if not pathlib.Path(file).is_file():  # of a notebook, or made at run time
    return keys
  for statement in ast.walk(ast.parse(pathlib.Path(file).read_text(encoding="utf-8"))):
    if isinstance(statement, ast.stmt):
      for node in ast.walk(statement):
        if isinstance(node, ast.Dict):
          for key in node.keys:
            if isinstance(key, ast.Constant):
              keys.setdefault((statement.lineno, str(key.value)), key.lineno)
  return keys


def _stages(arguments: Sequence[str]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
  """What each item after the colon and each flag makes of the config: origin, before, after.

  Items without which the file cannot be loaded count as part of it.
  """
  file = next(arg for arg in arguments if arg.startswith("--config="))
  path, _, text = file.partition(":")
  items = split_items(text)
  chosen = [item for item in items if "=" not in item]
  typed = [item for item in items if "=" in item]
  # What the file itself has are the values of the paper.
  stages = [([f"{path}:paper"], ""), ([path], "preset demo")]
  if "paper" in chosen:
    stages = stages[:1]
  stages += [
    ([f"{path}:{','.join(chosen[: i + 1])}"], f"preset {name}") for i, name in enumerate(chosen)
  ]
  stages += [
    ([f"{path}:{','.join([*chosen, *typed[: i + 1]])}"], item) for i, item in enumerate(typed)
  ]
  for arg in arguments:
    if arg.startswith("--config."):
      stages.append(([*stages[-1][0], arg], arg))
  before = None
  for loaded, origin in stages:
    try:
      after = _values(overrides.load(loaded))
    except UserError:
      continue
    if before is not None:
      yield origin, before, after
    before = after


def _values(config: ConfigDict) -> dict[str, Any]:
  return {name: value for name, (_, value) in _leaves(config)}
