"""Installs cxrjax: `pip install -e .`; extras `tfds`, `cuda`, `docs`, `umap`, `test`."""
import pathlib

import setuptools

HERE = pathlib.Path(__file__).parent

BASE = [
  "jax>=0.10.2",
  "flax>=0.12.8",
  "optax>=0.2.8",
  "orbax-checkpoint>=0.12.4",
  "grain>=0.2.18",
  "tensorflow-datasets>=4.9.10",
  "array_record>=0.8.1; platform_system == 'Linux' or platform_system == 'Darwin'",
  "importlib_resources>=6.0",  # tensorflow-datasets imports it without asking for it
  "einops>=0.8",
  "flatbuffers>=24.3",  # jax.export writes its files with it
  "ml_collections>=1.1",
  "numpy>=2.0",
  "scipy>=1.13",
  "pillow>=11.0",
  "tifffile>=2025.1",
  "imagecodecs>=2025.3",  # decoders of what TIFF, PNG and DICOM hold (BSD)
  "pydicom>=3.0",
  "pyarrow>=17.0",  # which tensorflow-datasets brings as well
  "safetensors>=0.8",
  "jaxtyping>=0.3",
  "tensorboardX>=2.6.2",  # event files without TensorFlow
  "tqdm>=4.66",
]

TFDS = [  # what the `tfds` command itself imports; a training run needs none of it
  "tensorflow-cpu>=2.18; platform_system == 'Linux' and platform_machine == 'x86_64'",
  "tensorflow>=2.18; platform_system != 'Linux' or platform_machine != 'x86_64'",
  "apache-beam>=2.60",
  "mlcroissant>=1.0",
]

UMAP = ["umap-learn>=0.5.7"]  # the map of images in a report; PCA without it

TEST = [
  # encoders of JPEG 2000 and JPEG-LS, other than what decodes them here
  "pylibjpeg>=2.0", "pylibjpeg-openjpeg>=2.4", "pyjpegls>=1.5",
  "pytest>=8", "pytest-xdist>=3.6", "beartype>=0.20", "ruff>=0.8", "scikit-learn>=1.5",
  "nbclient>=0.10", "ipykernel>=6.29",  # the tests execute the notebooks
]

# The site. Material for MkDocs is in its last year of maintenance; its authors' successor reads the
# same mkdocs.yml. 0.1 needs a package of its own that not every index has, so 0.0.73 will do.
DOCS = ["zensical>=0.0.73", "mkdocstrings-python>=2.0"]

setuptools.setup(
  name="cxrjax",
  version="0.1.0",
  description="Self-supervised learning on chest radiographs in JAX/Flax",
  long_description=(HERE / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  packages=setuptools.find_packages(include=["cxrjax", "cxrjax.*"]),
  package_data={"cxrjax": ["py.typed", "report/html/*.css", "data/mini/*", "zoo/*/*"]},
  python_requires=">=3.11",
  install_requires=BASE,
  extras_require={
    "tfds": TFDS, "cuda": ["jax[cuda12]>=0.10.2"], "docs": DOCS, "test": TEST,
    "umap": UMAP},
  classifiers=[
    "License :: OSI Approved :: Apache Software License",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Medical Science Apps.",
  ],
)
