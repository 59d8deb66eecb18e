"""What devices send each other in a step: gradients, and nothing of the size of activations."""

import json

import pytest
from small import full, program

METHODS = ("dino", "dinov2", "mae", "gmml", "moco", "finetune", "segment")
SCRIPT = """
import json, sys
import jax
import hlo, lowered
from cxrjax.models.module import param_count
from cxrjax.training import compile_ahead
from cxrjax.training.sharding import make_mesh

assert jax.device_count() == 8
fsdp, found = int(sys.argv[1]), {}
for name in sys.argv[2:]:
  config = lowered.get_config(f"{name}:tiny")
  config["model"] |= {"width": 384, "depth": 2, "heads": 6}  # large enough to be split
  mesh = make_mesh(fsdp)
  work = compile_ahead.build_step(config, mesh)
  inputs = compile_ahead.inputs(
    config, mesh, True, compile_ahead.EXAMPLES, compile_ahead.LABELS)
  spec = work.batch_spec(*inputs)
  shapes = work.abstract(spec)
  program = hlo.Program(compile_ahead.train_step(config, mesh).lower().compile().as_text())
  found[name] = {
    "params": 4 * param_count(shapes["params"]), "state": 4 * param_count(shapes["method_state"]),
    "batch": config["batch_size"], "width": 384, "moved": hlo.collectives(program)}
print(json.dumps(found))
"""


def collectives(fsdp, names):
  return json.loads(program(SCRIPT, str(fsdp), *names))


def check(name, of, fsdp):
  moved = of["moved"]
  assert set(moved) <= {"all-reduce", "reduce-scatter", "all-gather"}, (name, moved)
  reduced = sum(moved.get(kind, {}).get("bytes", 0) for kind in ("all-reduce", "reduce-scatter"))
  # Gradients, and sums over the batch (centres, batch norm). On a CPU those of kernels that several
  # groups of crops and losses share are added up after they are sent; a GPU adds first.
  assert 0.9 * of["params"] < reduced < 4.5 * of["params"], (name, moved, of["params"])
  gathered = moved.get("all-gather", {}).get("bytes", 0)
  # Features of the whole batch (negatives, health) or images to corrupt with, of this tiny batch.
  features = 8 * 4 * of["batch"] * max(of["width"], 1024)
  parameters = (of["params"] + of["state"]) if fsdp > 1 else 0
  assert gathered < parameters + features, (name, moved, parameters, features)
  assert fsdp == 1 or gathered > 0.5 * of["params"], (name, moved)


@pytest.mark.parametrize("fsdp", [1, full(2)])
def test_dino_sends_gradients_and_gathers_parameters(fsdp):
  found = collectives(fsdp, METHODS[:1])
  check("dino", found["dino"], fsdp)


@pytest.mark.full
@pytest.mark.parametrize("fsdp", [1, 2])
def test_methods_send_gradients_and_gather_parameters(fsdp):
  for name, of in collectives(fsdp, METHODS[1:]).items():
    check(name, of, fsdp)
