import jax
import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import export
from jax.extend.mlir import deserialize_portable_artifact
from jaxlib.mlir import ir

from inference.artifacts import stablehlo
from inference.errors import Rejected
from tests.support import goodfiles, hostile

pytestmark = pytest.mark.filterwarnings("ignore")


def classify(x):
    return {"class": jnp.argmax(x, -1), "scores": jax.nn.softmax(x @ jnp.ones((4, 3)))}


@pytest.fixture(scope="module")
def blob():
    (rows,) = export.symbolic_shape("rows")
    shape = jax.ShapeDtypeStruct((rows, 4), jnp.float32)
    return bytes(export.export(jax.jit(classify), platforms=["cpu", "cuda", "tpu"])(shape).serialize())


def contents(serialized):
    """Names of operations and custom call targets of a module, as the loader walks it."""
    operations, targets = set(), set()

    def look(operation):
        operations.add(operation.name)
        if operation.name == "stablehlo.custom_call":
            targets.add(ir.StringAttr(operation.attributes["call_target_name"]).value)
        return ir.WalkResult.ADVANCE

    with ir.Context():
        deserialize_portable_artifact(serialized).operation.walk(look)
    return operations, targets


def test_a_blob_tells_its_platforms_and_shapes(blob, tmp_path):
    path = tmp_path / "upload"
    path.write_bytes(blob)
    assert stablehlo.looks_like(path)
    found = stablehlo.read(path)
    assert found.name == "classify"
    assert found.platforms == ["cpu", "cuda", "tpu"]
    assert [(aval.datatype, aval.shape, aval.symbols) for aval in found.inputs] == [("FP32", (-1, 4), ("rows",))]
    assert [(aval.datatype, aval.shape) for aval in found.outputs] == [("INT32", (-1,)), ("FP32", (-1, 3))]


def test_an_honest_program_of_many_operations_is_allowed():
    def many(x):
        solved = jnp.linalg.solve(jnp.eye(3) * x[0, 0], jnp.linalg.eigh(jnp.eye(3))[0])
        looped = jax.lax.fori_loop(0, 3, lambda _, a: a * 1.1, jnp.sort(x, -1))
        chosen = jax.lax.cond(x[0, 0] > 0, jnp.sin, jax.lax.erf_inv, looped)
        return jax.nn.gelu(chosen).at[0].set(0), solved, jax.random.normal(jax.random.key(0), (3,)), jnp.fft.fft(x).real

    exported = export.export(jax.jit(many))(jax.ShapeDtypeStruct((8, 4), jnp.float32))
    operations, targets = contents(exported.mlir_module_serialized)
    assert targets
    stablehlo.check_ops(operations, targets)


def test_a_callback_hidden_from_the_header_is_found_among_the_operations(tmp_path):
    path = hostile.stablehlo_callback(tmp_path, tmp_path / "marker")
    stablehlo.read(path)
    operations, targets = contents(export.deserialize(bytearray(path.read_bytes())).mlir_module_serialized)
    with pytest.raises(Rejected, match="xla_ffi_python_cpu_callback") as caught:
        stablehlo.check_ops(operations, targets)
    assert caught.value.remedy


def test_safety_checks_that_are_off_are_refused(tmp_path):
    with pytest.raises(Rejected, match="safety checks"):
        stablehlo.read(hostile.stablehlo_unchecked(tmp_path, tmp_path / "marker"))


@pytest.mark.parametrize("operation", ["stablehlo.infeed", "stablehlo.send", "stablehlo.all_reduce", "evil.op", ""])
def test_operations_that_reach_outside_are_not_on_the_list(operation):
    with pytest.raises(Rejected):
        stablehlo.check_ops(["stablehlo.add", operation], [])


@pytest.mark.parametrize(
    "target", ["tpu_custom_call", "mosaic_gpu_v2", "tf.call_tf_function", "xla_python_cpu_callback", ""]
)
def test_targets_that_hold_programs_are_not_on_the_list(target):
    with pytest.raises(Rejected):
        stablehlo.check_ops([], [target])


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_truncated_blob_is_refused_or_not_recognised(blob, tmp_path, part):
    path = tmp_path / "upload"
    path.write_bytes(blob)
    hostile.truncated(path, part)
    assert not stablehlo.looks_like(path) or part > 0.4
    with pytest.raises(Rejected):
        stablehlo.read(path)


def test_weights_beside_the_program_are_checked(tmp_path):
    assert stablehlo.check_weights(tmp_path) == []
    goodfiles.safetensors(tmp_path / stablehlo.WEIGHTS, {"a": [2], "b": [3]})
    assert "2 parameters" in stablehlo.check_weights(tmp_path)[0]
    hostile.truncated(tmp_path / stablehlo.WEIGHTS)
    with pytest.raises(Rejected):
        stablehlo.check_weights(tmp_path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_damage_is_read_or_refused_and_nothing_else(blob, tmp_path, edits):
    data = bytearray(blob)
    for at, value in edits:
        data[at % len(data)] = value
    path = tmp_path / "upload"
    path.write_bytes(data)
    stablehlo.looks_like(path)
    try:
        found = stablehlo.read(path)
    except Rejected:
        return
    assert found.platforms
