"""What programs are compiled with, and that they still say the same."""

import jax
import numpy as np

from cxrjax.core import compile_effort


def test_options_are_for_cpus_and_follow_how_often_a_program_runs(optimised, monkeypatch):
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  ((name, often),) = compile_effort.options().items()
  assert often > compile_effort.options(once=True)[name]
  monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=3")
  assert compile_effort.options() is None
  monkeypatch.delenv("XLA_FLAGS")
  jax.config.update("jax_disable_most_optimizations", True)
  assert compile_effort.options() is None
  jax.config.update("jax_disable_most_optimizations", False)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert compile_effort.options() is None and compile_effort.options(once=True) is None


def test_a_function_of_a_module_is_compiled_once_with_them():
  traced = []

  @compile_effort.jit
  def double(x):
    """Twice."""
    traced.append(x.shape)
    return 2 * x

  for _ in range(3):
    assert np.array_equal(double(np.arange(4.0)), [0, 2, 4, 6])
  assert traced == [(4,)] and double.__doc__ == "Twice."
