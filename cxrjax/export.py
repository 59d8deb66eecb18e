"""`python -m cxrjax.export --workdir=RUN --out=FILE`: a finished run's network for other programs.

By FILE's ending, or `--format`:

- `.safetensors`: names and shapes of timm's network of the same family (torchvision's, for ResNet,
  DenseNet and InceptionV3), with the classifier of a run of `configs/finetune.py`. The call of
  `timm.create_model` that it loads into, strictly, is printed and kept in the file's metadata.
- `.npz`: our own names, one array each, and `cxrjax`, a JSON string that describes the network.
- `.stablehlo`: the computation itself, for CPU, NVIDIA, AMD and TPU, with its weights and for any
  number of images; `jax.export.deserialize(bytes).call(x)` runs it where JAX is, without this
  package. x are gray levels 0 to 255, float32 [b s s 1]; resizing is up to the caller. The result
  is a dict: `probabilities` [b k] of a classifier, `mask` [b s s 1] of a segmentation, or
  `features` [b d] and `patches` [b n d]. `FILE.json` beside it describes both ends.

- a folder, with `--format=run`: a run to hand on, which `--workdir=FOLDER`, `init=FOLDER` and the
  like take: config, weights in half precision, model card, hashes of the images that were learnt
  from; no checkpoint, no patient.
- `.onnx`: the same computation, for any number of images, through `jax2onnx`, which is not among
  the dependencies (docs/weights.md); of encoders and classifiers.

`config.init.path=FILE` (and `init=FILE`) reads the first two again. All have checksums: within the
first two, as `sha256` in `FILE.json` beside the others. `python -m cxrjax.export --check=FILE`
holds a file against them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict
from jax import export as jax_export
from jaxtyping import Array, Float

from cxrjax.config.instantiate import trust
from cxrjax.core import checksums, command
from cxrjax.core import files as regular
from cxrjax.core.errors import UserError, suggest
from cxrjax.core.text import escape
from cxrjax.inference.networks import Network, load
from cxrjax.models.weights import export_timm, files
from cxrjax.report import model_card
from cxrjax.report import run_files as runs
from cxrjax.report.pages import run_page
from cxrjax.training import exported_run, learnt_from

_WORKDIR = flags.DEFINE_string("workdir", None, "Of a finished run.")
_OUT = flags.DEFINE_string("out", None, "The file to write.")
_FORMAT = flags.DEFINE_string(
  "format", None, "safetensors, npz, stablehlo, onnx, or run; by default from the file's extension."
)
_IMAGE_SIZE = flags.DEFINE_integer(
  "image_size",
  None,
  "Pixels per side of the images that a .stablehlo takes; by default those "
  "that the run was trained on.",
)
_CHECK = flags.DEFINE_string(
  "check", None, "A file written before: holds it against its checksums, and writes nothing."
)
_TRUST = flags.DEFINE_list("trust", [], "Your own modules that the run may name.")
FORMATS = ("safetensors", "npz", "stablehlo", "onnx", "run")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def outputs(network: Network, gray: Float[Array, "b s s c"]) -> dict[str, Array]:
  """Outputs of the network for gray levels 0 to 255, in float32 for portability."""
  x = (gray / 255 - network.mean) / network.std
  encoder = dataclasses.replace(network.run.encoder, dtype="float32")
  if network.kind != "encoder":
    method = dataclasses.replace(network.run.method, encoder=encoder)
    name = "probabilities" if network.kind == "classifier" else "mask"
    return {name: method.predict(network.params, x)}
  features = encoder.encode(network.params["encoder"], x)
  return {"features": features.cls, "patches": features.patches}


def write(workdir: str, path: str, kind: str = "", image_size: int | None = None) -> list[str]:
  """Writes a finished run's network; returns lines for the user.

  Args:
    workdir: of the run.
    path: of the file.
    kind: one of `FORMATS`; "" to infer it from the path's ending.
    image_size: see the flag.

  Raises:
    UserError: no finished run, an unknown format, a network unknown to timm, or a file that cannot
      be written.
  """
  file = pathlib.Path(path).expanduser()
  kind = kind or file.suffix[1:]
  if kind not in FORMATS:
    raise UserError(f"--format={kind!r} is not known{suggest(kind, FORMATS)}")
  network = load(workdir, "--workdir", image_size)
  if network.members:
    raise UserError(f"--workdir={workdir} is an ensemble; export its runs one by one")
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    to_format = {
      "safetensors": _safetensors,
      "npz": _npz,
      "stablehlo": _stablehlo,
      "onnx": _onnx,
      "run": _run,
    }
    lines = to_format[kind](network, file)
  except OSError as error:
    raise UserError(f"--out={path!r} cannot be written: {error.strerror or error}") from error
  about = network.describe()
  pixels = f"({about['mean']:g}, {about['std']:g})"
  size = sum(part.stat().st_size for part in ([*file.iterdir()] if kind == "run" else [file]))
  return [
    f"{file}  {size / 1e6:.1f} MB, step {network.run.step} of {workdir}",
    f"images: gray, {network.image_size} px; pixels in 0..1 minus and over {pixels}"
    + (" are inside" if kind in ("stablehlo", "onnx") else ""),
    *lines,
  ]


def _safetensors(network: Network, file: pathlib.Path) -> list[str]:
  run = network.run
  head = network.params["head"] if network.kind == "classifier" else None
  converted = export_timm.to_timm(run.encoder, network.params["encoder"], head)
  call = {"model": converted.model, "args": converted.args}
  about = network.describe() | {"names": "timm", "timm": call}
  text = json.dumps(about)
  files.write(file, converted.arrays, text, format="pt")
  lines = [f"loads into {converted.command}"] if converted.model else []
  dropped = [*converted.left, *(f"{n}/..." for n in network.params if n not in ("encoder", "head"))]
  lines += [f"left out: {', '.join(dropped)}"] if dropped else []
  return [*lines, *converted.notes]


def _run(network: Network, folder: pathlib.Path) -> list[str]:
  exported_run.write(network.run, folder)
  if (learnt := learnt_from.learnt(str(network.run.workdir))) is not None:
    learnt.without_patients().save(folder / learnt_from.FILE)
  checksums.write_manifest(folder)
  run_page.save(folder / model_card.NAME, model_card.render(runs.read(network.run.workdir)))
  return [f"--workdir={folder} predicts with it; {folder / model_card.NAME} says what it is"]


def _npz(network: Network, file: pathlib.Path) -> list[str]:
  flat = {n: np.asarray(v, np.float32) for n, v in flatten_dict(network.params, sep="/").items()}
  text = json.dumps(network.describe() | {"names": "cxrjax"})
  metadata = {files.DESCRIPTION_KEY: text, files.CHECKSUM_KEY: files.checksum(flat, text)}
  arrays: dict[str, Any] = {name: np.array(value) for name, value in metadata.items()} | flat
  with file.open("wb") as npz_file:  # given a path, savez would append its own ending
    np.savez(npz_file, **arrays)
  return [f"{len(flat)} arrays"]


def _stablehlo(network: Network, file: pathlib.Path) -> list[str]:
  size, channels = network.image_size, network.run.encoder.channels
  batch = jax_export.symbolic_shape("b")[0]
  images = jax.ShapeDtypeStruct((batch, size, size, channels), jnp.float32)
  function = jax.jit(functools.partial(outputs, network))
  exported = jax_export.export(function, platforms=PLATFORMS)(images)
  file.write_bytes(exported.serialize())
  shapes = {
    name: [n if isinstance(n, int) else str(n) for n in x.shape]
    for name, x in jax.tree.unflatten(exported.out_tree, exported.out_avals).items()
  }
  about = network.describe() | {
    "input": ["b", size, size, channels],
    "input_range": [0, 255],
    "outputs": shapes,
    "platforms": list(PLATFORMS),
    "calling_convention": exported.calling_convention_version,
  }
  _describe(file, about)
  return [
    "jax.export.deserialize(open(FILE, 'rb').read()).call(x) gives "
    + ", ".join(f"{name} [{' '.join(map(str, s))}]" for name, s in shapes.items())
  ]


def _onnx(network: Network, file: pathlib.Path) -> list[str]:
  try:
    import jax2onnx
    import onnx
  except ImportError as error:
    raise UserError(
      f"--format=onnx needs {error.name}: pip install onnx onnx-ir equinox dm-pix && pip install "
      "--no-deps jax2onnx; or use --format=stablehlo"
    ) from error
  size, channels = network.image_size, network.run.encoder.channels
  function = functools.partial(outputs, network)
  names = list(
    jax.eval_shape(function, jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32))
  )
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      model = jax2onnx.to_onnx(
        function, [("b", size, size, channels)], input_names=["gray"], output_names=sorted(names)
      )
  except Exception as error:  # converters raise anything for unsupported operations
    reason = (str(error).strip().splitlines() or [repr(error)])[0][:120]
    raise UserError(
      f"jax2onnx does not convert this network ({reason}); use --format=stablehlo"
    ) from error
  onnx.helper.set_model_props(model, {files.DESCRIPTION_KEY: json.dumps(network.describe())})
  onnx.save(model, str(file))
  _describe(file, network.describe())
  return [f"gray [b {size} {size} {channels}] in 0..255 gives {', '.join(sorted(names))}"]


def _describe(file: pathlib.Path, about: Mapping[str, Any]) -> None:
  """Writes `FILE.json`: a description with a checksum of the file, sealed by its own checksum."""
  digest = hashlib.sha256(file.read_bytes()).hexdigest()
  description_file = file.with_name(file.name + ".json")
  description_file.write_text(checksums.seal({**about, "sha256": digest}))


def check(path: str) -> str:
  """Verifies the checksums of a file or folder written by `write`; returns a line that it is whole.

  Raises:
    UserError: it is damaged, or has no checksum.
  """
  file = pathlib.Path(path).expanduser()
  option = f"--check={path!r}"
  if file.is_dir():
    if why := checksums.find_damage(file):
      raise UserError(f"{option} is damaged, or not an exported run: {why}; write it again")
    return f"{escape(str(file))} is whole"
  json_file = file.with_name(file.name + ".json")
  if file.suffix in (".safetensors", ".npz"):
    if not files.read(file, "--check").about:
      raise UserError(f"{option} was not written by cxrjax.export, so it has no checksum")
    return f"{escape(str(file))} is whole"
  try:
    about = checksums.unseal(regular.read(json_file, regular.MAX_JSON))
    with regular.open_regular(file) as opened:
      digest = hashlib.file_digest(opened, "sha256").hexdigest()
  except (OSError, ValueError) as error:
    raise UserError(
      f"{option} cannot be checked: {error}; it needs {json_file.name} beside it"
    ) from error
  if about.get("sha256") != digest:
    raise UserError(
      f"{option} is damaged: {json_file.name} has a different checksum; export it again"
    )
  return f"{escape(str(file))} is whole"


def main(argv: list[str]) -> None:
  """Runs the command."""
  if "--help" in argv[1:]:
    sys.stdout.write(f"{__doc__}\n{flags.FLAGS.module_help('__main__')}\n")
    return
  try:
    positional = flags.FLAGS(argv)
  except flags.Error as error:
    raise UserError(str(error).splitlines()[0]) from error
  if len(positional) > 1:
    raise UserError(f"{positional[1]!r} is not a flag; flags begin with --")
  if _CHECK.value:
    sys.stdout.write(check(_CHECK.value) + "\n")
    return
  if not _WORKDIR.value or not _OUT.value:
    raise UserError("--workdir=RUN and --out=FILE are needed; see --help")
  trust(_TRUST.value)
  for line in write(_WORKDIR.value, _OUT.value, _FORMAT.value or "", _IMAGE_SIZE.value):
    command.say(line)


def run() -> None:
  """Entry point of the program; see `command.run`."""
  command.run(lambda: main(sys.argv))


if __name__ == "__main__":
  run()
