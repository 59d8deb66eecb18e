"""Workdirs of finished runs whose test predictions are made up, in place of training."""

import json

import jax
import jax.numpy as jnp
import made_up
import numpy as np

from cxrjax.config.instantiate import build
from cxrjax.core.durations import Clock
from cxrjax.evals import classification_metrics
from cxrjax.methods.base import Labels
from cxrjax.metrics import segmentation
from cxrjax.report.run_writer import Writer, now
from cxrjax.training import restore
from cxrjax.training.checkpoint import Checkpoints

N = 60
IDS = np.array([f"image{i}" for i in range(N)])
PATIENTS = np.array([f"patient{i // 2}" for i in range(N)])
LABELS = np.eye(2, dtype=np.float32)[np.arange(N) % 2]


def probabilities(skill, seed):
  """Two classes; the larger `skill`, the better they are told apart. f64[N 2]."""
  rng = np.random.default_rng(seed)
  p = 1 / (1 + np.exp(-(skill * (LABELS[:, 1] - 0.5) + rng.standard_normal(N))))
  return np.stack([1 - p, p], 1)


def classify(workdir, config, skill, seed, images=100, evaluator="test", **facts):
  """As a fine-tuning leaves it, judged by one evaluator."""
  p = probabilities(skill, seed)
  metrics = classification_metrics.evaluate(
    "", p, LABELS, PATIENTS, ("a", "b"), True, None, ("auroc", "accuracy", "balanced_accuracy")
  )
  _finish(
    workdir,
    config,
    evaluator,
    metrics,
    images,
    facts,
    {"test": {"name": "phantom", "n": N}},
    probability=p,
    labels=LABELS,
    patient=PATIENTS,
    id=IDS,
    exclusive=True,
    threshold=np.full(2, 0.5),
  )


def segment(workdir, config, skill, seed, images=100, **facts):
  """As a segmentation leaves it."""
  dice = np.clip(0.7 + 0.02 * skill + 0.1 * np.random.default_rng(seed).random(N), 0, 1)
  _finish(
    workdir,
    config,
    "test",
    {"dice": segmentation.mean(dice, list(PATIENTS))},
    images,
    facts,
    {"name": "phantom", "n": N},
    dice_all=dice,
    id_all=IDS,
    patient_all=PATIENTS,
  )


def network(workdir, config, classes=("normal", "opacity")):
  """As a training leaves it: made-up weights that `restore` opens, judged by its test evaluator."""
  facts = {
    "status": "finished",
    "steps": 4,
    "epochs": 1.0,
    "batch_size": 8,
    "data": {
      "train": {
        "name": "phantom",
        "n": 40,
        "bits": 8,
        "classes": list(classes),
        "exclusive": True,
        "class_counts": dict.fromkeys(classes, 20),
        "class_known": dict.fromkeys(classes, 40),
      }
    },
  }
  encoder = build(config["model"], "Model", "config.model")
  labels = Labels(classes, True, (20, 20), (40, 40))
  method = restore.build_method(config["method"], encoder, Clock(4, 1.0, 8), labels)
  state = jax.tree.map(jnp.asarray, made_up.weights(restore._template(config, facts, method)))
  checkpoints = Checkpoints(workdir / "checkpoints", config=config)
  checkpoints.save(4, state)
  checkpoints.wait()
  (workdir / "config.json").write_text(json.dumps(config))
  with Writer(workdir) as writer:
    if "test" in config["evals"]:
      evaluator = build(config["evals"]["test"], "Evaluator", "config.evals.test")
      params = method.network_params(state["params"], state["method_state"])
      found = evaluator.run(method.predict, params, evaluator.load(progress=False))
      facts["evaluation"] = {"test": {"trained": found.facts}}
      writer.arrays("scores_test_trained", **found.arrays)
    writer.facts(**facts)


def _finish(workdir, config, evaluator, metrics, images, facts, test, **arrays):
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / "config.json").write_text(json.dumps(config, default=lambda item: item.to_dict()))
  with Writer(workdir) as writer:
    writer.facts(
      **{
        "status": "finished",
        "started": now(),
        "finished": now(),
        "data": {"train": {"name": "phantom", "n": images}, evaluator: test},
        "steps": 10,
        "epochs": 0.5,
        "model": {"name": "cxrjax.models.vit", "variant": "Nu", "parameters": 160_000},
        "timing": {"total_s": 12.0},
        "chosen": {"evaluators": [evaluator]},
        **facts,
      }
    )
    writer.results(10, 0.5, evaluator, "trained", metrics)
    writer.arrays(f"scores_{evaluator}_trained", **arrays)
