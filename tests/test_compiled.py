"""What is read from a compiled program: collectives of programs whose traffic is known."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from loong_jax.compiled import collectives

# As the TPU compiler writes it: a loop of five runs, a gather spread over two fusions, and a reduction of which each
# device keeps a part.
TPU_TEXT = """
HloModule jit_step, is_scheduled=true

%add.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused.1 (p: bf16[2,8]) -> bf16[16,8] {
  %p = bf16[2,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.7 = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=3, attributes={chain_id="1"}
}

%async_collective_fusion.2 (p: bf16[2,8]) -> (bf16[4,4], bf16[16,8]) {
  %p = bf16[2,8]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.8 = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=3, attributes={chain_id="2"}
  ROOT %t = (bf16[4,4], bf16[16,8]) tuple(%p, %all-gather.8)
}

%all-reduce-scatter.5 (p: f32[64]) -> f32[8] {
  %p = f32[64]{0} parameter(0)
  %all-reduce.9 = f32[64]{0} all-reduce(%p), channel_id=4, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add.1
  ROOT %slice = f32[8]{0} dynamic-slice(%all-reduce.9), dynamic_slice_sizes={8}
}

%condition.1 (p: (s32[], bf16[2,8])) -> pred[] {
  %p = (s32[], bf16[2,8]{1,0}) parameter(0)
  %limit = s32[]{:T(128)} constant(5)
  %index = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%index, %limit), direction=LT
}

%body.1 (p: (s32[], bf16[2,8])) -> (s32[], bf16[2,8]) {
  %p = (s32[], bf16[2,8]{1,0}) parameter(0)
  %x = bf16[2,8]{1,0} get-tuple-element(%p), index=1
  %f1 = bf16[16,8]{1,0} fusion(%x), kind=kLoop, calls=%fused.1
  %f2 = (bf16[4,4], bf16[16,8]) fusion(%x), kind=kLoop, calls=%async_collective_fusion.2
  ROOT %t = (s32[], bf16[2,8]{1,0}) tuple(%p, %x)
}

ENTRY %main.1 (p: bf16[2,8]) -> f32[8] {
  %p = bf16[2,8]{1,0} parameter(0)
  %kernel = f32[8]{0} custom-call(%p), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":
"settings":"{\"block\": 512}
}}, metadata={op_name="jit(step)/kernel"}
  %loop = (s32[], bf16[2,8]{1,0}) while(%p), condition=%condition.1, body=%body.1
  %s = f32[8]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.5
  %n = f32[] all-reduce(%p), channel_id=9, replica_groups={{0,1,2,3}}, to_apply=%add.1
  %m = f32[] all-reduce(%p), channel_id=9, replica_groups={{0,1,2,3}}, to_apply=%add.1
  %r = f32[8]{0} reduce-scatter(%p), channel_id=9, replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add.1
  %g = (f32[3]{0}, f32[24]{0}) all-gather-start(%p), channel_id=10, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %out = f32[8]{0} all-reduce(%s), channel_id=11, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add.1
}
"""


def test_the_tpu_compilers_text():
    assert collectives(TPU_TEXT) == {
        "all-gather": 5 * 16 * 8 * 2 + 24 * 4,
        "reduce-scatter": 64 * 4 + 4 * 8 * 4,
        "all-reduce": 2 * (8 + 1 + 1) * 4,
    }


def test_a_compiled_loop_on_eight_devices(make_mesh):
    """Three runs, each gathering a cut matrix and summing a vector over all devices."""
    mesh = make_mesh(fsdp=8)
    cut, whole = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())

    def body(x, matrix):
        gathered = jax.lax.with_sharding_constraint(matrix, whole)
        return jnp.tanh(x @ gathered), None

    def run(x, matrices):
        x, _ = jax.lax.scan(body, x, matrices)
        return x.sum(axis=0)

    stacked = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    arguments = (
        jax.ShapeDtypeStruct((8, 32), jnp.float32, sharding=cut),
        jax.ShapeDtypeStruct((3, 32, 32), jnp.float32, sharding=stacked),
    )
    found = collectives(jax.jit(run, out_shardings=whole).lower(*arguments).compile().as_text())
    assert found["all-gather"] == 3 * 32 * 32 * 4
    np.testing.assert_equal(found["all-reduce"], 2 * 32 * 4)
