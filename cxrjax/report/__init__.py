"""What a run leaves behind: metrics as JSON lines and TensorBoard events, and one HTML page.

Everything the page shows lies in files of the workdir, so the page is a pure function of it and
can be written again at any time, on any machine, without JAX or the data.
"""
