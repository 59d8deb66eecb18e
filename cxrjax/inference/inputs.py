"""Images given by a user: files, folders and zips of files, or arrays."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from cxrjax.core import files
from cxrjax.core.errors import UserError
from cxrjax.data.decoding import decode
from cxrjax.data.decoding.decode import BadImage, DecodedImage
from cxrjax.data.sources import archive, folder_index

Film = Callable[
  [int], DecodedImage
]  # decodes an image to at least so many pixels; may raise BadImage
_JPEG = b"\xff\xd8"
_Place = tuple[folder_index.Index, int] | str  # a row of a folder or zip, or a file


@runtime_checkable
class ImageInputs(Protocol):
  """Named images that are read on demand, by any thread.

  Attributes:
    ids: unique names.
  """

  @property
  def ids(self) -> Sequence[str]: ...

  def film(self, index: int) -> Film:
    """Reads image `index`; the result may be called repeatedly, to decode it.

    Raises:
      BadImage: it cannot be read.
    """
    ...


class Files:
  """Files, and all images below folders and in zips: PNG, JPEG, TIFF, BMP, DICOM.

  An image below a single folder or zip is named by its path within it; with several paths, that
  follows the folder's path as given. A file is named as given. Duplicate names are taken once. A
  file is read whatever its name; in folders, images are recognized by their extension or, failing
  that, by their first bytes.

  Args:
    paths: of files, folders and zips.
    cache_dir: where the index of a folder is cached.
    without: a folder whose images are left out, such as the output folder.

  Attributes:
    notes: what was not searched, and the files that are no images, by kind.
    others: name of each of these files, and why it is no image.

  Raises:
    UserError: no paths, a missing file or folder, or a folder without images.
  """

  def __init__(
    self,
    paths: Iterable[str | os.PathLike[str]],
    cache_dir: str | None = None,
    without: str | os.PathLike[str] | None = None,
  ):
    roots = list(dict.fromkeys(os.fspath(p) for p in paths))
    if not roots:
      raise UserError("no images are given; name files or folders")
    self.notes: list[str] = []
    self.others: list[tuple[str, str]] = []
    places: dict[str, _Place] = {}
    for path in roots:
      root = pathlib.Path(path).expanduser()
      if not root.exists():
        raise UserError(f"{path}: there is no such file or folder")
      if root.is_dir() or root.suffix.lower() == ".zip":
        prefix = "" if len(roots) == 1 else path.rstrip("/") + "/"
        folder = self._add_folder(folder_index.Index(root, cache_dir), prefix, without)
        places = {**places, **folder, **places}  # an image keeps its first place
      else:
        places.setdefault(path, str(root))
    self.ids, self._places = list(places), list(places.values())

  def _add_folder(
    self, index: folder_index.Index, prefix: str, without: str | os.PathLike[str] | None
  ) -> dict[str, _Place]:
    """Images of a folder or zip by name; notes its other files."""
    self.notes += [name + why for name, why in index.notes]
    excluded = _excluded_prefix(index, without)
    for other in index.others:
      outside = tuple(prefix + p for p in other.paths if not p.startswith(excluded))
      if outside:
        self.notes.append(dataclasses.replace(other, paths=outside).said(outside[0]))
        self.others += [(name, f"not an image: {other.reason}") for name in outside]
    return {prefix + index.paths[i]: (index, i) for i in _image_rows(index, excluded, without)}

  def film(self, index: int) -> Film:
    place = self._places[index]
    if isinstance(place, tuple):
      folder, row = place
      data = folder.read(row)
    else:
      try:
        data = files.read(place, archive.MAX_BYTES)
      except OSError as error:
        raise BadImage(f"it cannot be read ({error.strerror or error})") from error
      except files.Damaged as error:
        raise BadImage(str(error)) from error
    if data.startswith(_JPEG):  # decoded at 1/2, 1/4 or 1/8 size if that is enough
      return functools.partial(decode.decode_with_window, data)
    decoded = functools.cache(lambda: decode.decode_with_window(data))
    return lambda at_least: decoded()


class Arrays:
  """Gray levels in memory, named by their indices.

  Args:
    arrays: uint8 or uint16, [h w] or [h w 1], of any sizes; or one array of several.

  Raises:
    UserError: no array, or one of an unsupported type or shape.
  """

  def __init__(self, arrays: Iterable[Any]):
    self._arrays = [_check_gray(i, array) for i, array in enumerate(arrays)]
    if not self._arrays:
      raise UserError("no images are given; give arrays of gray levels, uint8 or uint16 [h w]")
    self.ids = [str(i) for i in range(len(self._arrays))]

  def film(self, index: int) -> Film:
    array = self._arrays[index]
    return lambda at_least: DecodedImage(array, None, array.shape[:2])


def _excluded_prefix(
  index: folder_index.Index, without: str | os.PathLike[str] | None
) -> tuple[str, ...]:
  """Prefix of the paths of a folder that lie below `without`, for `startswith`; () if none do."""
  if without is None:
    return ()
  relative = os.path.relpath(os.path.realpath(os.path.expanduser(without)), index.root.resolve())
  if relative.split(os.sep)[0] == os.pardir:
    return ()
  return ("",) if relative == os.curdir else (relative + "/",)


def _image_rows(
  index: folder_index.Index, excluded: tuple[str, ...], without: str | os.PathLike[str] | None
) -> list[int]:
  """Rows of the images of a folder that do not start with an excluded prefix."""
  rows = [row for row in index.images.tolist() if not index.paths[row].startswith(excluded)]
  if not rows:
    raise UserError(
      f"no images in {index.root} apart from the output in {without}; choose another output folder"
    )
  return rows


def open_given(images: Any, cache_dir: str | None = None) -> ImageInputs:
  """Opens one or more paths as `Files`, or arrays as `Arrays`.

  Raises:
    UserError: neither of them, or as `Files` and `Arrays` raise.
  """
  if isinstance(images, str | os.PathLike):
    return Files([images], cache_dir)
  if hasattr(images, "ndim") and images.ndim < 3:
    raise UserError(
      f"an array of shape {tuple(images.shape)} is not a list of images; give "
      "[array] for one image, or an array [n h w]"
    )
  images = list(images)
  are_paths = [isinstance(image, str | os.PathLike) for image in images]
  if all(are_paths):
    return Files(images, cache_dir)
  if any(are_paths):
    raise UserError("paths and arrays cannot be mixed; give either")
  return Arrays(images)


def _check_gray(i: int, array: Any) -> np.ndarray:
  array = np.asarray(array)
  if array.dtype not in (np.uint8, np.uint16):
    raise UserError(
      f"image {i} is an array of {array.dtype}; give gray levels as uint8 (0 to 255) or uint16"
    )
  if array.ndim == 2:
    array = array[..., None]
  if array.ndim != 3 or array.shape[-1] != 1:
    raise UserError(f"image {i} has the shape {array.shape}; give gray levels [h w] or [h w 1]")
  return array
