"""What `benchmarks/hlo.py` reads from a compiled program, beside what is known of it."""

import hlo
import jax
import jax.numpy as jnp

TEXT = """\
HloModule step, is_scheduled=true

%cut (whole: f32[8,16], part: f32[2,16]) -> f32[2,16] {
  %whole = f32[8,16]{1,0} parameter(0)
  %part = f32[2,16]{1,0} parameter(1)
  %double = f32[8,16]{1,0} add(%whole, %whole)
  %slice = f32[2,16]{1,0} slice(%double), slice={[0:2], [0:16]}
  ROOT %sum = f32[2,16]{1,0} add(%slice, %part)
}

ENTRY %main (a: f32[8,16], b: f32[2,16], t: bf16[3,5]) -> (f32[2,16], f32[8,16]) {
  %a = f32[8,16]{1,0} parameter(0)
  %b = f32[2,16]{1,0} parameter(1)
  %t = bf16[3,5]{1,0:T(8,128)(2,1)} parameter(2)
  %fused = f32[2,16]{1,0} fusion(%a, %b), kind=kLoop, calls=%cut
  %near = bf16[3,5]{1,0:T(8,128)(2,1)S(1)} copy(%t)
  %gather-start = (f32[1,16]{1,0}, f32[8,16]{1,0}) all-gather-start(%b), dimensions={0}
  %gather = f32[8,16]{1,0} all-gather-done(%gather-start)
  ROOT %out = (f32[2,16]{1,0}, f32[8,16]{1,0}) tuple(%fused, %gather)
}
"""


def traffic(name):
  program = hlo.Program(TEXT)
  entry = program.computations["main"]
  return program.traffic(entry[name], entry)


def test_a_fusion_reads_what_it_slices():
  part = 2 * 16 * 4
  assert traffic("fused") == 3 * part  # of `a` as much as of `b`, and the result


def test_a_tpus_tiles_are_filled_up_and_its_vector_memory_is_free():
  assert traffic("near") == 8 * 128 * 2


def test_what_starts_is_counted_once():
  assert traffic("gather") == 0
  assert hlo.collectives(hlo.Program(TEXT)) == {"all-gather": {"count": 1, "bytes": 8 * 16 * 4}}


def test_a_collective_in_many_fusions_is_one():
  text = """\
%one (p: f32[2,8]) -> f32[8,8] {
  %p = f32[2,8]{1,0} parameter(0)
  ROOT %g = f32[8,8]{1,0} all-gather(%p), channel_id=7, dimensions={0}, \
frontend_attributes={chain_id="0"}
}

%two (q: f32[2,8]) -> f32[8,8] {
  %q = f32[2,8]{1,0} parameter(0)
  ROOT %h = f32[8,8]{1,0} all-gather(%q), channel_id=7, dimensions={0}, \
frontend_attributes={chain_id="0"}
}

ENTRY %main (x: f32[2,8]) -> f32[8,8] {
  %x = f32[2,8]{1,0} parameter(0)
  %a = f32[8,8]{1,0} fusion(%x), kind=kLoop, calls=%one
  ROOT %b = f32[8,8]{1,0} fusion(%x), kind=kLoop, calls=%two
}
"""
  assert hlo.collectives(hlo.Program(text)) == {"all-gather": {"count": 1, "bytes": 8 * 8 * 4}}


def test_products_of_a_real_program():
  compiled = (
    jax.jit(lambda a, b: (a @ b).sum()).lower(jnp.zeros((16, 32)), jnp.zeros((32, 8))).compile()
  )
  facts = hlo.summarise(compiled.as_text())
  assert facts["flops"] == {"f32xf32": 2.0 * 16 * 32 * 8}
  assert facts["flops_f32"] == facts["flops_total"]
  assert facts["bytes"] >= 4 * (16 * 32 + 32 * 8)
  assert facts["collectives"] == {}


def test_a_convolution_counts_its_kernel_for_every_output():
  text = """\
ENTRY %main (x: f32[2,8,8,3], k: f32[3,3,3,4]) -> f32[2,8,8,4] {
  %x = f32[2,8,8,3]{3,2,1,0} parameter(0)
  %k = f32[3,3,3,4]{3,2,1,0} parameter(1)
  ROOT %y = f32[2,8,8,4]{3,2,1,0} convolution(%x, %k), window={size=3x3}, dim_labels=b01f_01io->b01f
}
"""
  assert hlo.summarise(text)["flops_total"] == 2.0 * (2 * 8 * 8 * 4) * (3 * 3 * 3)
