"""Finished runs applied to new images: `cxrjax.load`, input files, prediction log, outputs."""
