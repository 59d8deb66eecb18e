"""Where finished networks look, and how much of it is lung: maps, lung scores, runs side by side.

    python -m cxrjax.main --config=configs/explain.py:runs=runs/finetune
    python -m cxrjax.main --config=configs/explain.py:runs=honest=runs/a+shortcut=runs/b
    python -m cxrjax.main --config=configs/explain.py:runs=runs/a,data=folder:PATH,masks=runs/lungs
    python -m cxrjax.main --config=configs/explain.py:runs=runs/dino,methods=attention+rollout

Runs are workdirs of finished runs, classifiers or pretrained encoders; the first is what the others
are held against. All see the same images: by default those that judged the first run. A
pretrained encoder has no classes; a linear probe on its features, fitted to labelled training
images of the same data, stands in for them.

Methods: `attention` of the last block, `rollout` (transformers), `gradcam`, `gradcam++`,
`occlusion`. Lung scores need lung masks: those of the data, or, where it has none, those that a
finished run of `configs/segment.py` draws (`masks=WORKDIR`), which the page then says.

Writes `report.html`, `maps/*.png` (maps over the radiographs shown), `arrays/*.npz` (the maps of
all images), `scores.csv` (of every image) and `run.json`. As a check of the maps themselves every
map is compared with that of the same network with random weights (Adebayo et al. 2018): a rank
correlation near 1 says that a map does not depend on what was learnt.

Measured on CPU, 2026-11-21; energy on the lungs over their share of the image, 1 by chance, with
95 % intervals over patients; differences are paired.

Two phantom classifiers that differ in one thing: in `shortcut` the class can be read off the side
marker (and the rest of the site's look). Both see the 512 test images of the honest phantom.

    C="configs/finetune.py:data=phantom,examples=1024,store=72,image_size=64,model=resnet18"
    C="$C,encoder_width=16,duration=400 steps,eval_every=100 steps,sites=2"
    python -m cxrjax.main --workdir=runs/honest --config="$C"                    # AUROC 0.995
    python -m cxrjax.main --workdir=runs/shortcut --config="$C,data.marker_shortcut=1.0"
    R=runs/honest+runs/shortcut                                                  # a minute
    python -m cxrjax.main --config=configs/explain.py:runs=$R,images=512,target=opacity

    as evidence for opacity    honest               shortcut             difference
    Grad-CAM                   1.41 (1.35-1.46)     0.71 (0.67-0.75)     -0.44 (-0.50 to -0.39)
    Grad-CAM++                 1.23 (1.22-1.25)     0.95 (0.93-0.97)     -0.28 (-0.30 to -0.27)

Images without evidence have a flat Grad-CAM and no score; its difference is of the 281 that give
both one. Of each image's predicted class, which was tried first (256 images), the difference is
smaller, Grad-CAM -0.17 (-0.22 to -0.11): of images called normal there is little to point at.

Kermany's test set (624 radiographs of children, masks drawn by `configs/segment.py:small` on
Shenzhen, of adults; nobody has checked them), evidence for pneumonia of the two classifiers of the
README, the ResNet-18 of 128 px (AUROC 0.979) and the ViT from GMML (0.945):

    R=ResNet-18=runs/cnn+ViT=runs/kermany/gmml-100pct-seed0,masks=runs/lungs     # two minutes
    python -m cxrjax.main --config=configs/explain.py:runs=$R,images=624,target=pneumonia

    Grad-CAM                   ResNet-18 0.87 (0.85-0.90)    ViT 0.63 (0.60-0.66)
    Grad-CAM++                 ResNet-18 0.98 (0.97-0.99)    ViT 0.64 (0.60-0.66)

Neither looks at the lungs more than chance would: high accuracy on this set is no proof of having
seen pneumonia. A cell of the ResNet's last map is a quarter of the image wide, which blurs its
scores towards 1.

Shenzhen's test images with their own masks, evidence for tuberculosis of the three starts of the
README's table (ViT-Mu/8, 64 px, seed 0):

    R=scratch=runs/tb/scratch-100pct-seed0+DINO=runs/tb/dino-100pct-seed0
    R=$R+GMML=runs/tb/gmml-100pct-seed0,methods=rollout+gradcam
    python -m cxrjax.main --config=configs/explain.py:runs=$R,target=tuberculosis

    Grad-CAM    scratch 0.97 (0.91-1.02)    DINO 0.61 (0.55-0.68)    GMML 1.54 (1.35-1.71)
    rollout     scratch 1.20 (1.16-1.23)    DINO 1.34 (1.30-1.38)    GMML 1.25 (1.23-1.26)

One seed each. Where the network attends to and what it takes for tuberculosis are two things: DINO
attends to the lungs most, and its evidence lies outside.
"""

from ml_collections import ConfigDict

from cxrjax.config.args import parse_arg
from cxrjax.config.recipe import options_of

OPTIONS = {
  "runs": "",  # NAME=WORKDIR+NAME=WORKDIR, or workdirs alone
  "data": "",  # a source; by default the one that judged the first run
  "split": "",  # of it; by default the test split
  "manual_dir": "",  # where tfds: finds archives to prepare a set from, on first use
  "methods": "",  # NAME+NAME; by default all that every run has, but occlusion
  "masks": "",  # a finished segmentation run, for images without a lung mask
  "images": 256,  # most that are scored, at even steps through the split
  "shown": 6,  # that are drawn
  "target": "",  # the class that is explained; by default each image's predicted one
  "tap": "",  # whose maps class activation maps weight, e.g. stage:2; by default the last
  "tiny": False,  # few images, for tests
}


def get_config(arg: str = "") -> ConfigDict:
  arg, of_source = options_of("data", arg)
  o = ConfigDict(parse_arg(arg, **OPTIONS))
  if o.manual_dir:
    of_source = {"manual_dir": o.manual_dir, **of_source}
  config = ConfigDict()
  config.task = "cxrjax.tasks.explain"
  config.runs = o.runs.replace("+", ",")
  config.data = {
    "source": o.data,
    "split": o.split,
    "options": of_source,
    "masks": o.masks,
    "cache_dir": "",
  }
  config.methods = o.methods
  config.images = 8 if o.tiny else o.images
  config.shown = 2 if o.tiny else o.shown
  config.target = o.target
  config.tap = o.tap
  config.probe_images = 1000  # training images that a probe is fitted to, at most
  config.seed = 0  # of the random weights
  return config
