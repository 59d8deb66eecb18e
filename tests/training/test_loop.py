"""What begins before the loop does."""

import types

import numpy as np
import pytest

from cxrjax.training import loop
from cxrjax.training.train_step import Trainer


class Noted(Trainer):
  """Notes what is asked of it; its state is a number of steps."""

  def __init__(self):
    vars(self).update(mesh=types.SimpleNamespace(size=1), block=4, taken=[])

  def batch_spec(self, data, batch):
    return {"image": (data, batch)}

  def init(self, spec):
    return {"step": np.int32(0), "spec": spec}

  def run(self, state, data, batch, count):
    self.taken.append(int(count))
    return {**state, "step": state["step"] + count}, {"loss": np.zeros(self.block)}


class Loader(list):
  data, storage = "pixels", "resident"

  def block(self, step, steps):
    return self[step : step + steps]


def test_the_step_is_compiled_and_none_is_taken():
  trainer = Noted()
  begun = loop.compile_in_background(trainer, Loader(range(8)))
  state, seconds = begun()
  assert state == {"step": 0, "spec": {"image": ("pixels", 0)}}
  assert trainer.taken == [0] and seconds >= 0


def test_where_a_call_would_take_a_step_only_the_state_is_made():
  trainer = Noted()
  vars(trainer).update(block=1)
  state, seconds = loop.compile_in_background(trainer, Loader(range(8)))()
  assert state["step"] == 0 and trainer.taken == [] and seconds == 0


def test_where_a_call_would_read_images_only_the_state_is_made():
  trainer, loader = Noted(), Loader(range(8))
  loader.storage = "streamed"
  state, seconds = loop.compile_in_background(trainer, loader)()
  assert state["step"] == 0 and trainer.taken == [] and seconds == 0


def test_several_devices_wait():
  trainer = Noted()
  vars(trainer).update(mesh=types.SimpleNamespace(size=8))
  assert loop.compile_in_background(trainer, Loader(range(8))) is None


def test_what_fails_is_told_to_who_asks():
  trainer = Noted()
  vars(trainer).update(init=lambda spec: 1 / 0)
  begun = loop.compile_in_background(trainer, Loader(range(8)))
  with pytest.raises(ZeroDivisionError):
    begun()
