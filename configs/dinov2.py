"""DINOv2 pretraining (Oquab et al. 2023, arXiv 2304.07193), judged by kNN and linear probe.

    python -m cxrjax.main --config=configs/dinov2.py              # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/dinov2.py:small,data=folder:PATH,split=all
    python -m cxrjax.main --config=configs/dinov2.py:paper        # ViT-S/16, 2x224 + 8x96, Kermany
    python -m cxrjax.main --config=configs/dinov2.py:patch_weight=0,koleo_weight=0  # DINO
    python -m cxrjax.main --config=configs/dinov2.py:tiny         # four steps, for tests

The first ends with a kNN (k = 20) AUROC of 0.806 (0.787-0.824) on the phantom's test images with
seed 0, the first recipe tried; the random encoder's is 0.739, a linear probe of thumbnails has
0.923 and one of these features 0.864 (2026-11-21, 13 minutes on half a core; positions of small
crops were then resampled by another cubic).

`:paper` has the defaults of the paper's code (its ViT-L/16 on ImageNet) for ViT-S/16: 65536
prototypes, a head for class tokens and patches, a centre, KoLeo 0.1, half of the large crops masked
by 10 to 50 %, learning rate 4e-3 for 1024 images and by the root of the batch for others, 0.9 of it
from block to block towards the image and 0.2 of that for patches. Layer scale starts at 1e-5, class
token and registers at 1e-6, and drop path is 0.3 in all blocks. Gradients are clipped by the norm
of the whole encoder and of each head, and prototypes have a learning rate of 0 in the first epoch.

Published recipes for radiographs differ from it in
  CheXFound (arXiv 2502.05142): model=L,centering=sinkhorn,patch_weight=3.0,prototypes=131072,
    bottleneck=384,separate_head=True,momentum=0.994,drop_path=0.4,lr=2e-4,layer_decay=1.0,
    weight_decay_end=0.2 and --config.model.registers=4;
  CXformer (MIDL 2025, from DINOv2's weights): prototypes=16384,bottleneck=384,separate_head=True,
    lr=3e-4,weight_decay=0.0,weight_decay_end=0.0 and --config.method.momentum=0.999.

After the colon stand `key=value` pairs over the options below, those of
`cxrjax/config/self_distillation.py` and of `cxrjax/config/recipe.py`; every key of the config is a
flag as well, `--config.optimizer.lr.start=1e-3`.
"""

from ml_collections import ConfigDict

from cxrjax.config import recipe, self_distillation
from cxrjax.models.vit import VARIANTS

DEMO = {
  "duration": "60 epochs",
  **self_distillation.DEMO,
  "solarize": 0.0,
  "norm_last_layer": True,
  "class_weight": 1.0,  # of DINO's loss; 0 switches it off
  "patch_weight": 1.0,  # of iBOT's
  "koleo_weight": 0.1,
  "centering": "center",  # or sinkhorn
  "separate_head": False,  # one for patches
  "mask_prob": 0.5,
  "mask_ratio": (0.1, 0.5),
  "layer_scale": 0.0,  # what factors of residual branches start as; 0: have none
  "drop_uniform": False,  # drop path at one rate in all blocks
  "lr_batch": 256,  # images that lr is for; other batches by lr_rule
  "lr_rule": "linear",  # or sqrt
  "layer_decay": 1.0,  # of the learning rate, from block to block towards the image
  "patch_lr": 1.0,  # share of it that the patch embedding has
}
SMALL = self_distillation.SMALL
PAPER = {
  **self_distillation.PAPER,
  "global_scale": (0.32, 1.0),
  "local_crops": 8,
  "local_scale": (0.05, 0.32),
  "solarize": 0.2,
  "prototypes": 65536,
  "norm_last_layer": False,
  "momentum": 0.992,
  "drop_path": 0.3,
  "duration": "100 epochs",
  "lr": 4e-3,
  "lr_batch": 1024,
  "lr_rule": "sqrt",
  "layer_scale": 1e-5,
  "drop_uniform": True,
  "layer_decay": 0.9,
  "patch_lr": 0.2,
}
TINY = self_distillation.TINY


def get_config(arg: str = "") -> ConfigDict:
  o = recipe.parse(arg, DEMO, small=SMALL, paper=PAPER, tiny=TINY)
  config = recipe.base(o)
  config.views = recipe.multi_crop(o)
  config.method = {
    **self_distillation.method(o, "dinov2"),
    "norm_last_layer": o.norm_last_layer,
    "class_weight": o.class_weight,
    "patch_weight": o.patch_weight,
    "koleo_weight": o.koleo_weight,
    "centering": o.centering,
    "separate_head": o.separate_head,
    "mask_prob": o.mask_prob,
    "mask_ratio": o.mask_ratio,
  }
  if o.model in VARIANTS:
    config.model.mask_token = o.patch_weight > 0
    config.model.layer_scale, config.model.drop_uniform = o.layer_scale, o.drop_uniform
    config.optimizer.layer_decay = o.layer_decay
    if o.patch_lr != 1:
      config.optimizer.lr_scale = (("encoder/patch/", o.patch_lr),)
  config.method.teacher_temp.kind = "linear"  # by steps, where DINO's rises by epochs
  config.optimizer.lr_batch, config.optimizer.lr_rule = o.lr_batch, o.lr_rule
  if o.paper:  # as the authors' code
    config.optimizer.clip_per = "module"
    config.optimizer.hold = (("head/prototypes", "1 epochs"),)
    if o.model in VARIANTS:
      config.model.token_std = 1e-6
  else:
    config.optimizer.freeze = (("head/prototypes", "1 epochs"),)
  return config
