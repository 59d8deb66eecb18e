"""PIRL jigsaw pretraining (Misra, van der Maaten 2019, arXiv 1912.01991), judged by kNN, probe.

    python -m cxrjax.main --config=configs/pirl_jigsaw.py         # phantom radiographs, minutes
    python -m cxrjax.main --config=configs/pirl_jigsaw.py:small,data=folder:PATH,split=all
    python -m cxrjax.main --config=configs/pirl_jigsaw.py:paper   # ResNet-50 with SGD, Kermany
    python -m cxrjax.main --config=configs/pirl_jigsaw.py:paper,model=S,optimizer=adamw,lr=5e-4
    python -m cxrjax.main --config=configs/pirl_jigsaw.py:tiny    # four steps, for tests

The first needs somewhat over two minutes of CPU time in all and ends with a kNN (k = 20) AUROC of
0.924 (0.911-0.935) on the phantom's test images with seed 0; the random encoder's is 0.739, a
linear probe of thumbnails has 0.923 and one of these features 0.948 (2026-11-21). With the paper's
linear heads as they are (`batch_norm=False`) it ends at 0.913; no other recipe was tried.

PIRL needs epochs more than images: a row of its bank is renewed once an epoch, and until the
network changes little between two visits it compares with what the network no longer says. On real
radiographs (`:small`, rotation, 846 steps in both cases) 4 epochs of 13,433 images ended below the
random encoder, 40 epochs of a tenth of them above it: a linear probe's AUROC on Kermany's test set
of 0.801 and 0.896, the random encoder's 0.850 (2026-11-21). So `:small` takes 40 epochs.

`:paper` has the values of the paper and of the authors' code: ResNet-50, linear heads of 128 (nine
patches: 9 x 128 to 128), tau 0.07, 32,000 negatives, a bank that keeps half of a row, SGD with 0.03
for 256 images falling to a thousandth, weight decay 1e-4, 800 epochs, no warm-up. Its batches are
256 where the authors have 1024. Their random posterising, sharpening, solarising and stretching of
two views of three are left out.

After the colon stand `key=value` pairs over the options of `cxrjax/config/pirl.py` and those of
`cxrjax/config/recipe.py`; every key of the config is a flag as well,
`--config.optimizer.lr.start=1e-3`.
"""

from ml_collections import ConfigDict

from cxrjax.config import pirl


def get_config(arg: str = "") -> ConfigDict:
  return pirl.config(arg, "jigsaw")
