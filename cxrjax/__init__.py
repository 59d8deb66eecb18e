"""cxrjax: self-supervised learning on chest radiographs in JAX/Flax."""

__version__ = "0.1.0"
