"""What a compiled program does, read from XLA's text: memory traffic, products, collectives.

    facts = hlo.summarise(compiled.as_text())

Counted are the instructions that a device dispatches: those of the entry computation and of the
bodies of loops, branches and calls, a body once. An instruction reads its operands and writes its
results; what stays inside a fusion is free, and of an operand that a fusion only slices, gathers
from or updates in place the part counts. Sizes on a TPU are those of its tiles; what it keeps in
vector memory, `S(1)`, is free as well.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from typing import Any

BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}  # the others say it: f32, s8, u4
FREE = frozenset(
  (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "iota",
    "after-all",
    "while",
    "conditional",
    "call",
    "opt-barrier",
    "partition-id",
    "replica-id",
    "async-start",
    "async-update",
    "domain",
    "add-dependency",
  )
)
COLLECTIVES = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)
PARTIAL = ("slice", "dynamic-slice", "gather")
# Computed only where it is sliced afterwards.
SAME = (
  "bitcast",
  "convert",
  "copy",
  "reshape",
  "transpose",
  "negate",
  "add",
  "multiply",
  "subtract",
)
_SHAPE = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.+)$")
_CALLED = re.compile(
  r"(?:calls|to_apply|body|condition|true_computation|false_computation|called_computations)="
  r"(?:\{([^}]*)\}|%?([\w.\-]+))|branch_computations=\{([^}]*)\}"
)


@dataclasses.dataclass(frozen=True)
class Shape:
  """One array: `bf16[8,384]{1,0:T(8,128)}`."""

  dtype: str
  dims: tuple[int, ...]
  layout: str

  @property
  def bytes(self) -> float:
    """In memory, tiles filled up; 0 in a TPU's vector memory."""
    if "S(1)" in self.layout:
      return 0.0
    bits = BITS[self.dtype] if self.dtype in BITS else int(re.search(r"\d+", self.dtype).group())
    dims = list(self.dims)
    tile = re.search(r"T\(([\d,]+)\)", self.layout)
    if tile and dims:
      minor = [int(i) for i in self.layout.split(":")[0].split(",") if i]
      for size, axis in zip(reversed(tile.group(1).split(",")), minor, strict=False):
        dims[axis] = -(-dims[axis] // int(size)) * int(size)
    return math.prod(dims) * bits / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line.

  Attributes:
    name: of the instruction.
    opcode: `fusion`, `dot`, `all-reduce-start`, ....
    shapes: of its results.
    operands: names of instructions in the same computation.
    rest: what follows the operands: attributes and metadata.
    root: whether it is its computation's result.
    arguments: what stands between the brackets.
  """

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  rest: str
  root: bool
  arguments: str

  @property
  def target(self) -> str:
    """Of a custom call."""
    found = re.search(r'custom_call_target="([^"]+)"', self.rest)
    return found.group(1) if found else ""

  @property
  def called(self) -> list[str]:
    """Computations that it calls."""
    return [
      name.strip(" %")
      for groups in _CALLED.findall(self.rest)
      for group in groups
      if group
      for name in group.split(",")
    ]


class Program:
  """The computations of `compiled.as_text()`."""

  def __init__(self, text: str) -> None:
    self.computations: dict[str, dict[str, Instruction]] = {}
    self.entry, current = "", None
    for line in text.splitlines():
      head = _COMPUTATION.match(line) if current is None else None
      if head:
        current = self.computations.setdefault(head.group(2), {})
        self.entry = head.group(2) if head.group(1) else self.entry
      elif line.startswith("}"):
        current = None
      elif current is not None and (found := _INSTRUCTION.match(line)):
        instruction = _instruction(*found.groups())
        if instruction is not None:
          current[instruction.name] = instruction

  def dispatched(self) -> list[tuple[Instruction, dict[str, Instruction]]]:
    """Every instruction that runs by itself, with its computation."""
    found, seen, waiting = [], set(), [self.entry]
    while waiting:
      name = waiting.pop()
      if name in seen or name not in self.computations:
        continue
      seen.add(name)
      computation = self.computations[name]
      for instruction in computation.values():
        found.append((instruction, computation))
        if instruction.opcode in ("while", "conditional", "call", "async-start"):
          waiting += instruction.called
    return found

  def inside(
    self, instruction: Instruction, computation: dict[str, Instruction]
  ) -> list[tuple[Instruction, dict[str, Instruction]]]:
    """The instruction and all those of fusions and calls in it, each with its computation."""
    found = [(instruction, computation)]
    if instruction.opcode in ("fusion", "custom-call"):
      for name in instruction.called:
        body = self.computations.get(name, {})
        for one in body.values():
          found += self.inside(one, body)
    return found

  def traffic(self, instruction: Instruction, computation: dict[str, Instruction]) -> float:
    """Bytes that it reads and writes."""
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith("-done"):
      return 0.0
    written = sum(shape.bytes for shape in instruction.shapes)
    operands = [computation.get(name) for name in instruction.operands]
    sizes = [sum(s.bytes for s in o.shapes) if o else 0.0 for o in operands]
    if opcode in PARTIAL:
      return 2 * written
    if opcode == "dynamic-update-slice":
      return 2 * sizes[1]
    if opcode.removesuffix("-start") in COLLECTIVES:
      return 2 * sum(sizes)
    if opcode in ("copy-start", "slice-start"):
      return sum(shape.bytes for shape in instruction.shapes[:2])
    if opcode != "fusion" or not instruction.called:
      return written + sum(sizes)
    body = self.computations.get(instruction.called[0], {})
    for parameter in body.values():
      if parameter.opcode == "parameter":
        at = int(parameter.arguments)
        sizes[at] = min(sizes[at], self._read(parameter, body, sizes[at]))
    root = next((one for one in body.values() if one.root), None)
    roots = (
      [root]
      if root is None or root.opcode != "tuple"
      else [body.get(name) for name in root.operands]
    )
    for shape, result in zip(instruction.shapes, roots, strict=False):
      if result is not None and result.opcode == "dynamic-update-slice":
        written += sum(s.bytes for s in body[result.operands[1]].shapes) - shape.bytes
    return written + sum(sizes)

  def _read(self, parameter: Instruction, body: dict[str, Instruction], whole: float) -> float:
    """Bytes of a fusion's parameter that are looked at."""
    total = 0.0
    for user in body.values():
      if parameter.name not in user.operands:
        continue
      if user.opcode in PARTIAL and user.operands[0] == parameter.name:
        share = math.prod(user.shapes[0].dims) / max(1, math.prod(parameter.shapes[0].dims))
        total += whole * min(1.0, share)
      elif user.opcode in SAME and not user.root:
        total += self._read(user, body, whole)
      elif not (user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name):
        return whole
    return min(total, whole)


def summarise(text: str) -> dict[str, Any]:
  """The sums of a program.

  Returns:
    `bytes`; `flops`, of products by the types of their operands, `flops_total`, and `flops_f32`,
    the largest of a product in float32; `attention_bytes`, of what was traced in `attention.py` or
    `pallas_attention.py`; and `collectives`.
  """
  program = Program(text)
  flops: collections.Counter[str] = collections.Counter()
  total = attention = largest = 0.0
  inner = _frames(text, "attention.py")
  for instruction, computation in program.dispatched():
    size = program.traffic(instruction, computation)
    total += size
    body = program.inside(instruction, computation)
    if size and any(inner(one) for one, _ in body if one.opcode != "parameter"):
      attention += size
    for one, around in body:
      for types, count in _products(one, around):
        flops[types] += count
        if types.startswith("f32"):
          largest = max(largest, count)
  return {
    "bytes": total,
    "attention_bytes": attention,
    "flops": dict(flops),
    "flops_total": float(sum(flops.values())),
    "flops_f32": largest,
    "collectives": collectives(program),
  }


def collectives(program: Program) -> dict[str, dict[str, float]]:
  """What devices send each other, by kind: `count`, and `bytes` of the results.

  A TPU's compiler writes a collective into every fusion that runs while it is under way; those
  have one channel.
  """
  found: dict[str, dict[str, float]] = {}
  under_way: set[tuple[str, str]] = set()
  for dispatched in program.dispatched():
    for one, _ in program.inside(*dispatched):
      kind = one.opcode.removesuffix("-start")
      if kind in COLLECTIVES:
        channel = re.search(r"channel_id=(\d+).*chain_id=", one.rest)
        if channel:
          if (kind, channel[1]) in under_way:
            continue
          under_way.add((kind, channel[1]))
        known = found.setdefault(kind, {"count": 0, "bytes": 0.0})
        known["count"] += 1
        known["bytes"] += _moved(one)
  return dict(sorted(found.items()))


def _moved(collective: Instruction) -> float:
  """Bytes of its results; of an asynchronous one they follow its operands."""
  shapes = collective.shapes
  if collective.opcode in ("all-gather-start", "collective-permute-start"):
    shapes = shapes[len(shapes) // 2 :] if "gather" in collective.opcode else shapes[1:2]
  return sum(shape.bytes for shape in shapes)


def _instruction(root: str | None, name: str, text: str) -> Instruction | None:
  """Parts of `shape opcode(operands), rest`."""
  end = _closing(text, 0) + 1 if text.startswith("(") else text.find(" ")
  call = re.match(r"\s*([a-z][\w\-]*)\(", text[end:])
  if call is None:
    return None
  opening = end + call.end() - 1
  closing = _closing(text, opening)
  arguments = text[opening + 1 : closing]
  shapes = tuple(
    Shape(dtype, tuple(int(d) for d in re.findall(r"\d+", dims)), layout)
    for dtype, dims, layout in _SHAPE.findall(text[:end])
  )
  return Instruction(
    name,
    call.group(1),
    shapes,
    tuple(re.findall(r"%([\w.\-]+)", arguments)),
    text[closing + 1 :],
    bool(root),
    arguments,
  )


def _closing(text: str, opening: int) -> int:
  depth = 0
  for at in range(opening, len(text)):
    depth += (text[at] == "(") - (text[at] == ")")
    if not depth:
      return at
  return len(text) - 1


def _products(one: Instruction, around: dict[str, Instruction]) -> list[tuple[str, float]]:
  """Floating-point operations by the types of the operands, 2 a multiply-add."""
  operands = [around[name].shapes[0] for name in one.operands if name in around]
  if one.opcode == "dot":
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest).group(1)
    inner = math.prod(operands[0].dims[int(axis)] for axis in axes.split(",") if axis)
    return [(_types(operands), 2.0 * math.prod(one.shapes[0].dims) * inner)]
  if one.opcode == "convolution":
    return [(_types(operands), _convolution(one, *operands[:2], one.shapes[0]))]
  if "gemm" in one.target or "matmul" in one.target:
    axes = re.search(r'"lhs_contracting_dimensions":\["?([\d",]*)"?\]', one.rest)
    axes = re.findall(r"\d+", axes.group(1)) if axes else ["-1"]
    inner = math.prod(operands[0].dims[int(axis)] for axis in axes)
    return [(_types(operands), 2.0 * math.prod(one.shapes[0].dims) * inner)]
  if "fmha" in one.target:
    b, n, heads, size = operands[0].dims  # two products, or five where it is the gradient
    return [
      (
        f"{operands[0].dtype} attention",
        (10.0 if "Backward" in one.target else 4.0) * b * heads * n * n * size,
      )
    ]
  if one.target.startswith("__cudnn$conv"):
    image, kernel, result = {
      "BackwardInput": (one.shapes[0], operands[1], operands[0]),
      "BackwardFilter": (operands[0], one.shapes[0], operands[1]),
    }.get(one.target.removeprefix("__cudnn$conv"), (operands[0], operands[1], one.shapes[0]))
    return [(_types(operands), _convolution(one, image, kernel, result))]
  return []


def _types(operands: list[Shape]) -> str:
  return "x".join(shape.dtype for shape in operands[:2])


def _convolution(one: Instruction, image: Shape, kernel: Shape, result: Shape) -> float:
  """Of a convolution of `image` to `result`; zeros between pixels, of a gradient, do not count."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest).group(2)
  per_output = math.prod(kernel.dims) / kernel.dims[labels.index("o")]
  window = re.search(r"lhs_dilate=([\dx]+)", one.rest)
  spread = math.prod(int(d) for d in window.group(1).split("x")) if window else 1
  return 2.0 * math.prod(result.dims) * per_output / spread


def _frames(text: str, file: str) -> Any:
  """Tells of an instruction whether it was traced in `file`, by its innermost frame of ours."""

  def table(title: str) -> dict[str, str]:
    found = re.search(rf"^{title}\n((?:\d+ .*\n)+)", text, re.M)
    return dict(line.split(" ", 1) for line in found.group(1).splitlines()) if found else {}

  def fields(line: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\d+)", line))

  files = table("FileNames")
  places = {
    key: files.get(fields(value).get("file_name_id", ""), "")
    for key, value in table("FileLocations").items()
  }
  stack = {key: fields(value) for key, value in table("StackFrames").items()}

  def inside(instruction: Instruction) -> bool:
    found = re.search(r"stack_frame_id=(\d+)", instruction.rest)
    frame = found.group(1) if found else ""
    for _ in range(100):
      if frame not in stack:
        return False
      place = places.get(stack[frame].get("file_location_id", ""), "")
      if "cxrjax/" in place:
        return file in place
      parent = stack[frame].get("parent_frame_id", "")
      if parent == frame:
        return False
      frame = parent
    return False

  return inside
