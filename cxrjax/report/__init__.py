"""Reports of runs: metrics as JSON lines and TensorBoard events, and one HTML page.

The page is a pure function of the files of the workdir: it can be written again at any time, on any
machine, without JAX or the data.
"""
