"""The step that is compiled in the background, before the loop begins."""

import types

import numpy as np
import pytest

from cxrjax.training import dispatch
from cxrjax.training.train_step import TrainStep


class Noted(TrainStep):
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
  train_step = Noted()
  pending_start = dispatch.compile_in_background(train_step, Loader(range(8)))
  state, seconds = pending_start()
  assert state == {"step": 0, "spec": {"image": ("pixels", 0)}}
  assert train_step.taken == [0] and seconds >= 0


def test_where_a_call_would_take_a_step_only_the_state_is_made():
  train_step = Noted()
  vars(train_step).update(block=1)
  state, seconds = dispatch.compile_in_background(train_step, Loader(range(8)))()
  assert state["step"] == 0 and train_step.taken == [] and seconds == 0


def test_where_a_call_would_read_images_only_the_state_is_made():
  train_step, loader = Noted(), Loader(range(8))
  loader.storage = "streamed"
  state, seconds = dispatch.compile_in_background(train_step, loader)()
  assert state["step"] == 0 and train_step.taken == [] and seconds == 0


def test_several_devices_wait():
  train_step = Noted()
  vars(train_step).update(mesh=types.SimpleNamespace(size=8))
  assert dispatch.compile_in_background(train_step, Loader(range(8))) is None


def test_what_fails_is_told_to_who_asks():
  train_step = Noted()
  vars(train_step).update(init=lambda spec: 1 / 0)
  pending_start = dispatch.compile_in_background(train_step, Loader(range(8)))
  with pytest.raises(ZeroDivisionError):
    pending_start()
