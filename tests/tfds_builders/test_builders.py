"""What holds for every builder in `tfds_builders/`."""

import pytest
import tensorflow_datasets as tfds

from cxrjax.builders import base_builder
from cxrjax.data.sources import tfds_prepare

NAMES = sorted(path.parent.name for path in tfds_prepare.BUILDERS.glob("*/*_dataset_builder.py"))
VIEWS, SEXES = ["PA", "AP", "L", "unknown"], ["F", "M", "unknown"]


def test_there_are_thirteen():
  assert len(NAMES) == 13


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_in_the_layout_of_tfds(name, tmp_path):
  folder = tfds_prepare.BUILDERS / name
  readme = (folder / "README.md").read_text()
  assert f"tfds build tfds_builders/{name}" in readme and (folder / "__init__.py").is_file()
  assert "research" in readme and "diagnosis" in readme
  kind = tfds_prepare.builder_class(name)
  assert issubclass(kind, base_builder.SetBuilder)  # splits of any size, without TensorFlow
  for config in [c.name for c in kind.BUILDER_CONFIGS] or [None]:
    made = kind(data_dir=str(tmp_path), config=config, file_format="array_record")
    assert made.name == name and made.MANUAL_DOWNLOAD_INSTRUCTIONS
    # TFDS reads tags and citations with the builder, and refuses a tag it does not know.
    assert "@" in made.info.citation and made.info.description.strip() == readme.strip()
    assert made.get_metadata().tags
    features = made.info.features
    assert {"image", "id", "patient", "age", "sex", "view", "site"} <= set(features)
    assert features["sex"].names == SEXES and features["view"].names == VIEWS
    assert isinstance(features["patient"], tfds.features.Text)
    assert {"label", "labels"} & set(features)
