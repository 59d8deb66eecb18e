"""A curriculum of self-supervised tasks, then fine-tuning (Tamé et al. 2023, arXiv 2301.10687).

    python -m cxrjax.main --config=configs/curriculum.py          # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/curriculum.py:small,manual_dir=DIR
    python -m cxrjax.main --config=configs/curriculum.py:paper,manual_dir=DIR,weights=FILE
    python -m cxrjax.main --config=configs/curriculum.py:tasks=pirl_jigsaw+moco+byol,data=folder:DIR
    python -m cxrjax.main --config=configs/curriculum.py:tiny     # for tests

The stages of `tasks=` learn one after another without labels, each from the network that the one
before left; the last is fine-tuned with labels. `weights=` are natural images', from which the
first stage starts. The page shows what every stage brought: the last one is repeated from scratch
and from every stage before it, each time with the same network (`each=False` leaves that out,
`seeds=0+1+2` repeats it; scratch has `optimizer.layer_decay=1.0`). The same command goes on where a
stage was stopped or failed. The first takes 3 minutes on one CPU core; test AUROC from scratch
0.875, after rotation 0.891, jigsaw 0.906, SimCLR 0.944 (0.933-0.953; each gain beyond its
interval, 2026-11-21).

That self-supervised tasks on radiographs, one after another, come before fine-tuning for pneumonia
is the paper's; which tasks, their order, the network and the numbers were not to be had. Here they
go from the position of an image's parts to the likeness of its views, on a ResNet-50 in `:paper`.

Stages are the configs of that name: `args.simclr=duration=40 epochs;lr=1e-3` changes one. For other
options see `cxrjax/config/curricula.py`.
"""

from ml_collections import ConfigDict

from cxrjax.config import curricula, study_args

OWN = {**curricula.OWN, "tasks": "pirl_rotation+pirl_jigsaw+simclr"}
REAL = {"data": "tfds:chest_xray_pneumonia", "unlabelled": curricula.UNLABELLED}
PRESETS = {"small": REAL, "paper": REAL, "tiny": {}}
DEMO = "duration=20 epochs"  # of each stage without labels, on phantoms


def get_config(arg: str = "") -> ConfigDict:
  o, handed = study_args.parse(arg, OWN, PRESETS)
  more = "" if handed.presets else DEMO
  tasks = [(name, more) for name in study_args.split_list(o.tasks)]
  stages = curricula.without_labels(o, handed, tasks)
  stages += curricula.with_labels(o, handed, "previous")
  return curricula.curriculum(o, __file__, stages)
