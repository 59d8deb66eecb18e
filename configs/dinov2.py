"""DINOv2 pretraining (Oquab et al. 2023, arXiv 2304.07193), judged by kNN and linear probe.

    python -m cxrjax.main --config=configs/dinov2.py              # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/dinov2.py:small,data=folder:PATH,split=all
    python -m cxrjax.main --config=configs/dinov2.py:paper        # ViT-S/16, 2x224 + 8x96, Kermany
    python -m cxrjax.main --config=configs/dinov2.py:method.patch_weight=0,method.koleo_weight=0
    python -m cxrjax.main --config=configs/dinov2.py:tiny         # four steps, for tests

`:paper` has the defaults of the paper's code (its ViT-L/16 on ImageNet) for ViT-S/16. Published
recipes for radiographs differ from it in
  CheXFound (arXiv 2502.05142): model=L,model.registers=4,model.drop_path=0.4,lr=2e-4,
    optimizer.layer_decay=1.0,optimizer.weight_decay.end=0.2,method.prototypes=131072,
    method.bottleneck=384,method.separate_head=True,method.centering=sinkhorn,
    method.patch_weight=3.0,method.momentum.start=0.994;
  CXformer (MIDL 2025, from DINOv2's weights): lr=3e-4,weight_decay=0.0,method.prototypes=16384,
    method.bottleneck=384,method.separate_head=True,method.momentum=0.999.
"""

from ml_collections import ConfigDict

from cxrjax.config import presets, recipe

DEMO = {
  "duration": "60 epochs",
  "model.layer_scale": 0.0,
  "model.drop_uniform": False,
  "optimizer.clip_per": "tensor",
  "optimizer.freeze": (("head/prototypes", "1 epochs"),),
  "optimizer.hold": (),
  "optimizer.layer_decay": 1.0,
  "optimizer.lr_batch": 256,
  "optimizer.lr_rule": "linear",
  "optimizer.lr_scale": (),
  "views.global_scale": (0.7, 1.0),
  "views.local_crops": 2,
  "views.local_size": 16,
  "views.local_scale": (0.4, 0.8),
  "views.brightness": 0.5,
  "views.contrast": 0.5,
  "views.jitter_prob": 1.0,
  "views.blur_sigma": (0.1, 2.8),
  "views.solarize_prob": (0.0, 0.0, 0.0),
  "method.prototypes": 128,
  "method.hidden": 256,
  "method.bottleneck": 64,
  "method.batch_norm": True,
  "method.center_momentum": 0.8,
  "method.teacher_temp.start": 0.02,
  "method.teacher_temp.end": 0.02,
  "method.teacher_temp.warmup": "0 epochs",
  "method.momentum.start": 0.99,
  "method.norm_last_layer": True,
}
SMALL = {
  "views.global_scale": (0.4, 1.0),
  "views.local_size": 32,
  "views.local_scale": (0.2, 0.5),
  "views.brightness": 0.4,
  "views.contrast": 0.4,
  "views.jitter_prob": 0.8,
  "views.blur_sigma": (0.1, 2.0),
  "method.prototypes": 1024,
  "method.hidden": 512,
  "method.bottleneck": 128,
  "method.center_momentum": 0.9,
  "method.teacher_temp.start": 0.04,
  "method.teacher_temp.end": 0.04,
  "method.momentum.start": 0.996,
}
PAPER = {
  "model.layer_scale": 1e-5,  # what factors of residual branches start as
  "model.drop_uniform": True,  # drop path at one rate in all blocks
  "model.token_std": 1e-6,  # of class token and registers
}
TINY = {"views.local_size": 16, "method.prototypes": 32}


def get_config(arg: str = "") -> ConfigDict:
  c = recipe.pretraining()
  c.duration = "100 epochs"
  c.model.drop_path = 0.3
  c.views = {
    "name": "cxrjax.views.multicrop",
    **recipe.pixels(c),
    "global_crops": 2,
    "global_scale": (0.32, 1.0),
    "local_crops": 8,
    "local_size": 96,
    "local_scale": (0.05, 0.32),
    "ratio": (3 / 4, 4 / 3),
    "flip": 0.5,
    "brightness": 0.4,
    "contrast": 0.4,
    "jitter_prob": 0.8,
    "blur_prob": (1.0, 0.1, 0.5),
    "blur_sigma": (0.1, 2.0),
    "blur_size": 224,
    "solarize_prob": (0.0, 0.2, 0.0),
    "solarize_threshold": 0.5,
    "rotate": 0.0,
  }
  c.method = {
    "name": "cxrjax.methods.dinov2",
    "prototypes": 65536,
    "hidden": 2048,
    "bottleneck": 256,
    "batch_norm": False,
    "norm_last_layer": False,
    "student_temp": 0.1,
    "centering": "center",  # or sinkhorn
    "center_momentum": 0.9,
    # by steps, where DINO's rises by epochs
    "teacher_temp": {"kind": "linear", "start": 0.04, "end": 0.07, "warmup": "30 epochs"},
    "momentum": {"start": 0.992, "end": 1.0},
    "class_weight": 1.0,  # of DINO's loss; 0 switches it off
    "patch_weight": 1.0,  # of iBOT's
    "koleo_weight": 0.1,
    "separate_head": False,  # one for patches
    "mask_prob": 0.5,  # of a large crop
    "mask_ratio": (0.1, 0.5),
  }
  c.optimizer.lr.start = 4e-3  # for 1024 images, by the root of the batch for others
  c.optimizer.lr_batch, c.optimizer.lr_rule = 1024, "sqrt"
  c.optimizer.layer_decay = 0.9  # of a ViT, as is the rate of its patch embedding
  c.optimizer.lr_scale = (("encoder/patch/", 0.2),)
  c.optimizer.clip_per = "module"  # the whole encoder, and each head
  c.optimizer.hold = (("head/prototypes", "1 epochs"),)
  presets.apply(c, arg, demo=DEMO, small=SMALL, paper=PAPER, tiny=TINY)
  if c.model.name.endswith(".vit"):
    c.model.mask_token = c.method.patch_weight > 0
  else:
    c.optimizer.layer_decay, c.optimizer.lr_scale = 1.0, ()
  return c
