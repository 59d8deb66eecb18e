"""A decoder that does to its process what its file says."""

import ctypes
import os
import threading

import numpy as np

from cxrjax.core.errors import UserError
from cxrjax.data.decoding.samples import BadImage


def act(data, at_least):
  """Answers with the file's bytes, unless the file says otherwise."""
  word = data.split()[0].decode()
  if word == "crash":
    ctypes.string_at(0)
  elif word == "abort":
    os.abort()
  elif word == "exit":
    os._exit(3)
  elif word == "wait":
    threading.Event().wait()
  elif word == "spin":
    while True:
      pass
  elif word == "fill":
    kept = [bytearray(64 << 20) for _ in range(400)]
    return np.zeros((1, 1, 1), np.uint8), {"n": len(kept)}
  elif word == "bad":
    raise BadImage("it is bad")
  elif word == "user":
    raise UserError("install something")
  elif word == "bug":
    raise ZeroDivisionError("a mistake of ours")
  elif word == "print":
    os.write(1, b"libsomething: noise\n" * 1000)
  return np.frombuffer(data, np.uint8).reshape(1, -1, 1), {"pid": os.getpid(), "n": at_least}
