import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bltjax.config import MeshConfig
from bltjax.hlo import Program, by_axis, dimensions, size_in_bytes
from bltjax.sharding import make_mesh


def compiled(function, *shapes, mesh=None):
    return jax.jit(function).lower(*[jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]).compile()


def test_sizes_are_read_from_shapes():
    assert dimensions("bf16[2,1,10]{2,1,0:T(8,128)(2,1)S(1)}") == (2, 1, 10)
    assert size_in_bytes("bf16[2,1,10]{2,1,0:T(8,128)}") == 40
    assert size_in_bytes("(f32[3]{0}, /*index=1*/pred[4]{0}, s32[])") == 12 + 4 + 4
    assert size_in_bytes("(f32[3]{0:T(128)S(1)}, f32[5]{0})", "main") == 20


def test_a_loop_counts_as_often_as_it_runs():
    def stack(x, kernels):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    program = compiled(stack, (64, 32), (7, 32, 32))
    assert Program(program.as_text()).flops == 7 * 2 * 64 * 32 * 32
    xla = program.cost_analysis()["flops"]
    assert xla < 2 * 2 * 64 * 32 * 32, "XLA counts a loop's body once: that is why this room exists"


def test_of_a_gradient_all_products_count_as_xla_counts_them_unrolled():
    def loss(kernels, x):
        for kernel in kernels:
            x = jnp.maximum(x @ kernel, 0)
        return x.sum()

    program = compiled(jax.grad(loss), (3, 32, 32), (64, 32))
    assert Program(program.as_text()).flops == (3 * 3 - 1) * 2 * 64 * 32 * 32  # no gradient for x
    assert Program(program.as_text()).flops == pytest.approx(program.cost_analysis()["flops"], rel=0.1)


def test_of_a_conditional_the_dearest_branch_counts():
    def either(which, x):
        return jax.lax.switch(which, [lambda x: x, lambda x: x @ x, lambda x: x @ x @ x], x)

    shapes = jax.ShapeDtypeStruct((), np.int32), jax.ShapeDtypeStruct((32, 32), np.float32)
    assert Program(jax.jit(either).lower(*shapes).compile().as_text()).flops == 2 * 2 * 32**3


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_a_convolution_counts_its_real_products(padding):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (2, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    lowered = jax.jit(convolve).lower(*[jnp.zeros(shape) for shape in ((2, 9, 7, 4), (3, 3, 4, 5))])
    counted = lowered.cost_analysis()["flops"]
    assert Program(lowered.compile().as_text()).flops == pytest.approx(counted, rel=1e-6)


# As TPU compilers write them: a batch axis is a window over a dilated axis, and trips stand in no attribute.
PRODUCT_AS_CONVOLUTION = """
HloModule product

ENTRY %main (a: f32[10,128,64], b: f32[10,128,64]) -> f32[10,128,128] {
  %a = f32[10,128,64]{2,1,0:T(8,128)} parameter(0)
  %b = f32[10,128,64]{2,1,0:T(8,128)} parameter(1)
  ROOT %c = f32[10,128,128]{2,1,0:T(8,128)} convolution(%a, %b), WINDOW, dim_labels=0bf_0oi->0bf
}
""".replace("WINDOW", "window={size=10 stride=9 lhs_dilate=10}")
LOOP_IN_STEPS_OF_TWO = """
HloModule loop

%body (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %p = (s32[], f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,8]{1,0} get-tuple-element(%p), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %y = f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], f32[8,8]{1,0}) tuple(%next, %y)
}

%condition (q: (s32[], f32[8,8])) -> pred[] {
  %q = (s32[], f32[8,8]{1,0}) parameter(0)
  %limit = s32[] constant(7)
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (z: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %z = (s32[], f32[8,8]{1,0}) parameter(0)
  ROOT %w = (s32[], f32[8,8]{1,0}) while(%z), condition=%condition, body=%body
}
"""


def test_a_product_written_as_a_convolution_has_the_flops_of_the_product():
    assert Program(PRODUCT_AS_CONVOLUTION).flops == 2 * 10 * 128 * 128 * 64


def test_trips_are_read_from_the_condition_and_the_counter():
    assert Program(LOOP_IN_STEPS_OF_TWO).flops == 4 * 2 * 8**3


def test_a_loop_whose_trips_cannot_be_read_is_refused():
    with pytest.raises(ValueError, match="while w: how often it runs"):
        Program(LOOP_IN_STEPS_OF_TWO.replace("add(%i, %two)", "multiply(%i, %two)"))


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match=r"compiled\.as_text"):
        Program("module @jit_f {}")


# As the compiler for GPUs writes them: products in Triton's fusions and in calls of cuBLAS, collectives that are
# started in one place and awaited in another.
LAYERS_ON_GPUS = """
HloModule jit_step

%gemm_computation (p0: bf16[64,32], p1: bf16[32,16]) -> f32[64,16] {
  %p0 = bf16[64,32]{1,0} parameter(0)
  %p1 = bf16[32,16]{1,0} parameter(1)
  ROOT %dot.1 = f32[64,16]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%body (t: (s32[], bf16[64,32], bf16[8,16])) -> (s32[], bf16[64,32], bf16[8,16]) {
  %t = (s32[], bf16[64,32]{1,0}, bf16[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = bf16[64,32]{1,0} get-tuple-element(%t), index=1
  %k = bf16[8,16]{1,0} get-tuple-element(%t), index=2
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %ag = ((bf16[8,16]{1,0}), bf16[32,16]{1,0}) all-gather-start(%k), GATHERED
  %kernel = bf16[32,16]{1,0} all-gather-done(%ag)
  %gemm = f32[64,16]{1,0} fusion(%x, %kernel), kind=kCustom, calls=%gemm_computation, TRITON
  %narrow = bf16[64,16]{1,0} convert(%gemm)
  %matmul = (bf16[64,32]{0,1}, s8[4194304]{0}) custom-call(%narrow, %kernel), CUBLAS
  %y = bf16[64,32]{0,1} get-tuple-element(%matmul), index=0
  ROOT %out = (s32[], bf16[64,32]{1,0}, bf16[8,16]{1,0}) tuple(%next, %y, %k)
}

%condition (u: (s32[], bf16[64,32], bf16[8,16])) -> pred[] {
  %u = (s32[], bf16[64,32]{1,0}, bf16[8,16]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%u), index=0
  %limit = s32[] constant(6)
  ROOT %less = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (z: (s32[], bf16[64,32], bf16[8,16]), g: f32[32,16]) -> f32[8,16] {
  %z = (s32[], bf16[64,32]{1,0}, bf16[8,16]{1,0}) parameter(0)
  %g = f32[32,16]{1,0} parameter(1)
  %while.1 = (s32[], bf16[64,32]{1,0}, bf16[8,16]{1,0}) while(%z), condition=%condition, body=%body, COUNTED
  %rs = ((f32[32,16]{1,0}), f32[8,16]{1,0}) reduce-scatter-start(%g), SCATTERED
  ROOT %summed = f32[8,16]{1,0} reduce-scatter-done(%rs)
}
"""
for _short, _long in {
    "GATHERED": "channel_id=1, replica_groups=mesh['axis_0'=4] {'axis_0'}, dimensions={0}, use_global_device_ids=true",
    "COUNTED": 'backend_config={"known_trip_count":{"n":"6"},"known_induction_variable":{"tuple_index":"0"}}',
    "TRITON": 'backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}',
    "SCATTERED": "channel_id=2, replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add",
    "CUBLAS": 'custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(step)/dot_general"}, '
    'backend_config={"gemm_backend_config":{"alpha_real":1,"dot_dimension_numbers":{'
    '"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"],'
    '"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}',
}.items():
    LAYERS_ON_GPUS = LAYERS_ON_GPUS.replace(_short, _long)


def test_products_of_triton_and_cublas_count_as_often_as_their_loop_runs():
    assert Program(LAYERS_ON_GPUS).flops == 6 * 2 * (2 * 64 * 32 * 16)


def test_a_collective_that_is_started_and_awaited_counts_once():
    sizes = {"replica": 1, "data": 4, "model": 1, "sequence": 1}
    gathered, summed = Program(LAYERS_ON_GPUS, sizes).traffic
    assert (gathered.kind, gathered.axes, gathered.count) == ("all-gather", ("data",), 6)
    assert gathered.sent == 6 * 8 * 16 * 2 * 3
    assert (summed.kind, summed.axes, summed.count) == ("reduce-scatter", ("data",), 1)
    assert summed.sent == 32 * 16 * 4 * 3 / 4


# As for TPUs: two gathers that are begun in one fusion and ended in another, and a third that is not cut up. All that
# a shard_map sends has the same channel.
CHAINED = """
HloModule step

%begin_1 (p0: bf16[8,16]) -> bf16[32,16] {
  %p0 = bf16[8,16]{1,0} parameter(0)
  %start_1 = u32[] custom-call(), custom_call_target="AsyncCollectiveStart"
  ROOT %ag_1 = bf16[32,16]{1,0} all-gather(%p0), GATHERED, frontend_attributes={chain_id="1"}
}

%end_1 (q0: bf16[8,16]) -> bf16[32,16] {
  %q0 = bf16[8,16]{1,0} parameter(0)
  %done_1 = u32[] custom-call(), custom_call_target="AsyncCollectiveDone"
  ROOT %ag_2 = bf16[32,16]{1,0} all-gather(%q0), GATHERED, frontend_attributes={chain_id="1"}
}

ENTRY %main (k: bf16[8,16], g: f32[32,16]) -> bf16[32,16] {
  %k = bf16[8,16]{1,0} parameter(0)
  %g = f32[32,16]{1,0} parameter(1)
  %begun = bf16[32,16]{1,0} fusion(%k), kind=kCustom, calls=%begin_1
  %ended = bf16[32,16]{1,0} fusion(%k), kind=kCustom, calls=%end_1
  %plain = bf16[32,16]{1,0} all-gather(%k), GATHERED
  %rs = f32[8,16]{1,0} reduce-scatter(%g), GATHERED, to_apply=%add
  ROOT %sum = bf16[32,16]{1,0} add(%ended, %plain)
}
""".replace("GATHERED", "channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}, use_global_device_ids=true")


def test_a_collective_that_is_cut_up_hides_no_other_on_its_channel():
    found = {one.kind: one for one in Program(CHAINED, {"data": 4}).traffic}
    assert found["all-gather"].count == 2 and found["all-gather"].sent == 2 * 8 * 16 * 2 * 3
    assert found["reduce-scatter"].count == 1 and found["reduce-scatter"].sent == 32 * 16 * 4 * 3 / 4


def test_an_axis_of_one_device_is_no_axis_that_is_crossed():
    sizes = {"replica": 1, "data": 4, "model": 1, "sequence": 1}
    named = "mesh['replica'=1,'data'=4,'model'=1,'sequence'=1] {'data','sequence'}"
    program = Program(LAYERS_ON_GPUS.replace("mesh['axis_0'=4] {'axis_0'}", named), sizes)
    assert {one.axes for one in program.traffic} == {("data",)}


SIZES = {"replica": 1, "data": 2, "model": 2, "sequence": 2}
PIECE = 16 * 4  # bytes that a device holds of a [2, 64] array split over data and model


@pytest.mark.parametrize(
    ("collective", "kind", "sent"),
    [
        (lambda x: jax.lax.psum(x, "data"), "all-reduce", PIECE * 2),
        (lambda x: jax.lax.all_gather(x, "data"), "all-gather", PIECE * 2),
        (lambda x: jax.lax.psum_scatter(x, "data", scatter_dimension=1, tiled=True), "reduce-scatter", PIECE),
        (lambda x: jax.lax.all_to_all(x, "data", 1, 0, tiled=True), "all-to-all", PIECE),
        (lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 0)]), "collective-permute", PIECE * 2),
    ],
)
def test_traffic_is_named_by_its_axis_and_measured(collective, kind, sent):
    mesh = make_mesh(MeshConfig(**SIZES))
    spec = PartitionSpec("data", "model")
    body = functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(None), check_vma=False)
    program = jax.jit(body(collective)).lower(jnp.zeros((2, 64))).compile()
    [found] = [one for one in Program(program.as_text(), SIZES).traffic if one.axes == ("data",)]
    assert (found.kind, found.count) == (kind, 1)
    assert found.sent == sent


def test_traffic_in_a_loop_counts_as_often_as_it_runs():
    mesh = make_mesh(MeshConfig(**SIZES))

    def loop(x):
        return jax.lax.scan(lambda x, _: (jax.lax.pmean(jnp.sin(x), "sequence"), None), x, None, length=5)[0]

    mapped = jax.shard_map(loop, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
    program = Program(jax.jit(mapped).lower(jnp.zeros(16)).compile().as_text(), SIZES)
    assert by_axis(program.traffic) == {("sequence",): 5 * 16 * 4}


KERNEL = """HloModule step

ENTRY %main (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %k = f32[8]{{0}} custom-call(%p), custom_call_target="tpu_custom_call", frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{{\\"block_q\\": 512}}"
}}}}, metadata={{op_name="{name}"}}
}}
"""


@pytest.mark.parametrize(("phase", "products"), [("fwd", 2), ("dq", 3), ("dkv", 4)])
def test_a_kernel_counts_as_the_scope_around_it_says(phase, products):
    name = f"jit(step)/transpose(jvp(flops_of_a_product_640))/splash_mha_{phase}_segmented_no_residuals"
    assert Program(KERNEL.format(name=name)).flops == products * 640


def test_a_kernel_that_says_nothing_is_refused():
    with pytest.raises(ValueError, match="what this kernel computes"):
        _ = Program(KERNEL.format(name="jit(step)/gmm")).flops


# As JAX asks cuDNN for attention: [batch, positions, heads, width], and a shape for the scores that nobody sees.
CUDNN = """HloModule attention

ENTRY %main (q: bf16[2,128,4,64], k: bf16[2,256,4,64]) -> bf16[2,4,128,64] {
  %q = bf16[2,128,4,64]{3,2,1,0} parameter(0)
  %k = bf16[2,256,4,64]{3,2,1,0} parameter(1)
  %call = (bf16[2,4,128,64]{3,1,2,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="__cudnn$TARGET", CONFIG
  ROOT %out = bf16[2,4,128,64]{3,1,2,0} get-tuple-element(%call), index=0
}
""".replace(
    "CONFIG",
    'backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"element_type": "BF16", '
    '"dimensions": ["2", "4", "128", "256"], "tuple_shapes": []}, "mask_type": "NO_MASK"}}',
)


@pytest.mark.parametrize(
    ("target", "products"), [("fmhaSoftmax", 2), ("fmhaScaleBiasSoftmax", 2), ("fmhaScaleBiasSoftmaxBackward", 5)]
)
def test_attention_of_cudnn_counts_every_score(target, products):
    assert Program(CUDNN.replace("TARGET", target)).flops == products * 2 * 2 * 4 * 128 * 256 * 64


def test_a_call_of_cudnn_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="what this call of cuDNN computes"):
        _ = Program(CUDNN.replace("TARGET", "convForward")).flops
