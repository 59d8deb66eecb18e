"""Memory allocation of this process, and its peak usage."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys

# Parameters of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
  """Makes malloc keep freed memory instead of returning it to the system; call this first of all.

  On CPU, XLA allocates the scratch memory of a step (gigabytes) when the step starts and frees it
  when it ends. glibc maps such blocks anew every time, and the kernel zeroes them page by page as
  they are touched: 500,000 page faults and a sixth of the time of a ViT-Ti DINO step of 16 images.
  In return the process's memory never shrinks, and all threads share one arena.

  Returns:
    Whether it had an effect; always False without glibc.
  """
  if platform.libc_ver()[0] != "glibc":
    return False
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):
    return False
  return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_ARENA_MAX, 1)])


def keep_compiled() -> None:
  """Makes JAX cache programs that take long to compile, in the folder of decoded images.

  JAX's own variables (JAX_COMPILATION_CACHE_DIR and
  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS) take precedence.
  """
  import jax  # here, so that malloc can be configured before anything is allocated

  cache = os.environ.get("CXRJAX_CACHE", os.path.expanduser("~/.cache/cxrjax"))
  for name, value in (
    ("jax_compilation_cache_dir", os.path.join(cache, "xla")),
    ("jax_persistent_cache_min_compile_time_secs", 2.0),
  ):
    if name.upper() not in os.environ:
      jax.config.update(name, value)


def peak() -> dict[str, float]:
  """Peak memory usage since this process started, in bytes.

  Returns:
    `peak_rss_bytes` of the process: decoded images, programs, and on CPU also the steps' arrays. On
    accelerators also `peak_device_bytes`, of the fullest of this process's devices.
  """
  import jax  # here, so that malloc can be configured before anything is allocated

  unit = 1 if sys.platform == "darwin" else 1024
  peaks = {"peak_rss_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}
  devices = [d for d in jax.local_devices() if d.platform != "cpu"]
  stats = [d.memory_stats() or {} for d in devices]
  device_peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
  return peaks | ({"peak_device_bytes": float(max(device_peaks))} if device_peaks else {})
