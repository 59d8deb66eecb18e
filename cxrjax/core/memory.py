"""How this process holds on to memory, and how much it took."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys

# From glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
  """Has malloc keep what is freed, instead of handing it back to the system; call it first of all.

  On CPU, XLA allocates the scratch memory of a step (gigabytes) when the step starts and frees it
  when it ends. glibc maps such blocks afresh every time, and the kernel zeroes them page by page
  as they are touched: 500,000 page faults and a sixth of the time of a ViT-Ti DINO step of 16
  images. The process's memory then never shrinks, and one arena serves all threads.

  Returns:
    Whether it had an effect: glibc only; elsewhere nothing is done.
  """
  if platform.libc_ver()[0] != "glibc":
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):
    return False
  return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_ARENA_MAX, 1)])


def keep_compiled() -> None:
  """Has JAX keep programs that take long to compile, in the folder of decoded images.

  What JAX's own variables say (JAX_COMPILATION_CACHE_DIR and
  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS) stays.
  """
  import jax  # here, so that malloc can be told before anything is allocated

  cache = os.environ.get("CXRJAX_CACHE", os.path.expanduser("~/.cache/cxrjax"))
  for name, value in (
    ("jax_compilation_cache_dir", os.path.join(cache, "xla")),
    ("jax_persistent_cache_min_compile_time_secs", 2.0),
  ):
    if name.upper() not in os.environ:
      jax.config.update(name, value)


def peak() -> dict[str, float]:
  """The most memory that has been in use since this process began, bytes.

  Returns:
    `peak_rss_bytes`, of the process: decoded images, programs, and on CPU also the steps' arrays.
    On an accelerator besides `peak_device_bytes`, of the fullest of this process's devices.
  """
  import jax  # here, so that malloc can be told before anything is allocated

  unit = 1 if sys.platform == "darwin" else 1024
  found = {"peak_rss_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}
  devices = [d for d in jax.local_devices() if d.platform != "cpu"]
  stats = [d.memory_stats() or {} for d in devices]
  used = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
  return found | ({"peak_device_bytes": float(max(used))} if used else {})
