"""SPCXR (Anwar et al. 2022, arXiv 2211.12944): GMML, then classification and lung segmentation.

    python -m cxrjax.main --config=configs/spcxr.py               # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/spcxr.py:small,manual_dir=DIR
    python -m cxrjax.main --config=configs/spcxr.py:paper,manual_dir=DIR  # ViT-S/16, 800 epochs
    python -m cxrjax.main --config=configs/spcxr.py:data=folder:DIR,lungs=tfds:nlm_tb/shenzhen
    python -m cxrjax.main --config=configs/spcxr.py:tiny          # for tests

One network learns from unlabelled radiographs to draw what was corrupted (`configs/gmml.py`), then
is fine-tuned for the classes of each source of `data=` (`configs/finetune.py`) and for lung masks
on `lungs=` (`configs/segment.py`, UNETR). The page shows each from scratch as well. The first
command takes 2.6 minutes on one CPU core and shows how it works, not that it helps: after half a
minute of GMML the AUROC is 0.856 (from scratch 0.879, gain -0.023, -0.037 to -0.009), the lungs'
Dice 0.927 (0.929). On real radiographs GMML brings 0.04 to 0.15, see the README
(2026-11-21, when GMML's head had a layer norm of its own).

ViT-S, GMML and the tasks (COVID-19, pneumonia, abnormal or not, lungs) are the paper's, GMML's
values its authors'. Which radiographs they learnt from, for how long, and the decoder were not to
be had: three public sets, GMML's 800 epochs and UNETR are ours.

`args.gmml=key=value;key=value`, `args.lungs=`, and `args.finetune=` (`args.finetune-NAME=` where
`data=` has several sources) are for one stage. For other options see `cxrjax/config/curricula.py`.
"""

from ml_collections import ConfigDict

from cxrjax.config import curricula, study_args

OWN = {**curricula.OWN, "lungs": "phantom"}  # a source with lung masks; "" leaves that stage out
REAL = {
  "unlabelled": curricula.UNLABELLED,
  "lungs": "tfds:nlm_tb/shenzhen",
  "data": "tfds:chest_xray_pneumonia+tfds:covid19_radiography",
}
PRESETS = {"small": REAL, "paper": REAL, "tiny": {}}
DEMO = "duration=30 epochs"  # of GMML, on phantoms


def get_config(arg: str = "") -> ConfigDict:
  o, handed = study_args.parse(arg, OWN, PRESETS)
  more = "" if handed.presets else DEMO
  stages = curricula.without_labels(o, handed, [("gmml", more)])
  stages += curricula.with_labels(o, handed, "gmml")
  if o.lungs:
    own = handed.argument(f"data={o.lungs}", name="lungs", only=study_args.SHARED)
    stages.append(curricula.stage("lungs", f"segment.py:{own}", "gmml"))
  return curricula.curriculum(o, __file__, stages)
