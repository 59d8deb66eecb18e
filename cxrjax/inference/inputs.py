"""Images that somebody names: files, folders and zips of files, or arrays."""

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
from cxrjax.data.decoding.decode import BadImage, Shown
from cxrjax.data.sources import archive, folder_index

Film = Callable[[int], Shown]  # decodes an image for a result of so many pixels, or is a BadImage
_JPEG = b"\xff\xd8"
_Place = tuple[folder_index.Index, int] | str  # a row of a folder or zip, or a file


@runtime_checkable
class ImageInputs(Protocol):
  """A sequence of images with names, each read when it is asked for, by any thread.

  Attributes:
    ids: unique names.
  """

  @property
  def ids(self) -> Sequence[str]: ...

  def film(self, index: int) -> Film:
    """Image `index`, read once however often it is shown.

    Raises:
      BadImage: it cannot be read.
    """
    ...


class Files:
  """Files, and all images below folders and in zips: PNG, JPEG, TIFF, BMP, DICOM.

  What lies below a single folder or zip is called by its path there; where there are several, or
  files as well, that path follows the folder's name as given. A file is called as given. What is
  given twice is taken once. A file is read whatever its name; in folders, images are known by their
  extension or, where that says nothing, by their first bytes.

  Args:
    paths: of files, folders and zips.
    cache_dir: where the index of a folder is remembered.
    without: a folder whose images are left out, for what is written while others are read.

  Attributes:
    notes: what was not looked at, and the files that are no images, by kind.
    others: name of each of these files, and why it is none.

  Raises:
    UserError: nothing is given, there is no such file or folder, or there is no image in it.
  """

  def __init__(
    self,
    paths: Iterable[str | os.PathLike[str]],
    cache_dir: str | None = None,
    without: str | os.PathLike[str] | None = None,
  ):
    given = list(dict.fromkeys(os.fspath(p) for p in paths))
    if not given:
      raise UserError("no images are given; name files or folders")
    self.ids: list[str] = []
    self.notes: list[str] = []
    self.others: list[tuple[str, str]] = []
    self._places: list[_Place] = []
    seen: set[str] = set()
    for path in given:
      found = pathlib.Path(path).expanduser()
      if not found.exists():
        raise UserError(f"{path}: there is no such file or folder")
      if found.is_dir() or found.suffix.lower() == ".zip":
        index = folder_index.Index(found, cache_dir)
        self.notes += [name + why for name, why in index.notes]
        before = "" if len(given) == 1 else path.rstrip("/") + "/"
        inside = _below(index, without)
        rows = _outside(index, inside, without)
        for other in index.others:
          left = tuple(before + p for p in other.paths if not p.startswith(inside))
          if left:
            self.notes.append(dataclasses.replace(other, paths=left).said(left[0]))
            self.others += [(path, f"no image: {other.reason}") for path in left]
        names = [before + index.paths[i] for i in rows]
        places: list[_Place] = [(index, i) for i in rows]
      else:
        names, places = [path], [str(found)]
      for name, place in zip(names, places, strict=True):
        if name not in seen:
          seen.add(name)
          self.ids.append(name)
          self._places.append(place)

  def film(self, index: int) -> Film:
    place = self._places[index]
    if isinstance(place, tuple):
      home, row = place
      data = home.read(row)
    else:
      try:
        data = files.read(place, archive.MAX_BYTES)
      except OSError as error:
        raise BadImage(f"it cannot be read ({error.strerror or error})") from error
      except files.Damaged as error:
        raise BadImage(str(error)) from error
    if data.startswith(_JPEG):  # decoded to a half, a quarter or an eighth where that is enough
      return functools.partial(decode.shown, data)
    whole = functools.cache(lambda: decode.shown(data))
    return lambda at_least: whole()


class Arrays:
  """Gray levels in memory, called by their numbers from 0.

  Args:
    arrays: uint8 or uint16, [h w] or [h w 1], of any sizes; or one array of several.

  Raises:
    UserError: no array, or one of another type or shape.
  """

  def __init__(self, arrays: Iterable[Any]):
    self._arrays = [_gray(i, array) for i, array in enumerate(arrays)]
    if not self._arrays:
      raise UserError("no images are given; give arrays of gray levels, uint8 or uint16 [h w]")
    self.ids = [str(i) for i in range(len(self._arrays))]

  def film(self, index: int) -> Film:
    array = self._arrays[index]
    return lambda at_least: Shown(array, None, array.shape[:2])


def _below(index: folder_index.Index, without: str | os.PathLike[str] | None) -> tuple[str, ...]:
  """What paths of a folder begin with that lie in another one below it."""
  if without is None:
    return ()
  inside = os.path.relpath(os.path.realpath(os.path.expanduser(without)), index.root.resolve())
  if inside.split(os.sep)[0] == os.pardir:
    return ()
  return ("",) if inside == os.curdir else (inside + "/",)


def _outside(
  index: folder_index.Index, inside: tuple[str, ...], without: str | os.PathLike[str] | None
) -> list[int]:
  """The images of a folder that do not lie in another one below it."""
  found = [row for row in index.images.tolist() if not index.paths[row].startswith(inside)]
  if not found:
    raise UserError(
      f"no images in {index.root} beside what is written into {without}; choose "
      "another folder to write"
    )
  return found


def open_given(images: Any, cache_dir: str | None = None) -> ImageInputs:
  """Paths (one or several) as `Files`, arrays as `Arrays`.

  Raises:
    UserError: neither, or see there.
  """
  if isinstance(images, str | os.PathLike):
    return Files([images], cache_dir)
  if hasattr(images, "ndim") and images.ndim < 3:
    raise UserError(
      f"an array of shape {tuple(images.shape)} is no list of images; give "
      "[array] for one image, or an array [n h w]"
    )
  images = list(images)
  named = [isinstance(image, str | os.PathLike) for image in images]
  if all(named):
    return Files(images, cache_dir)
  if any(named):
    raise UserError("paths and arrays are given together; give either")
  return Arrays(images)


def _gray(i: int, array: Any) -> np.ndarray:
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
