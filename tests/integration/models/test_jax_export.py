"""jax.export programs: refused before anything runs if they could reach outside; compiled once per bucket; exact."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from inference.artifacts.manifest import RuntimeSettings
from inference.errors import Rejected
from inference.models import LoadContext, load
from inference.models.on_jax import bounds, check
from inference.runtime import warmup
from inference.runtime.runner import Runner
from tests.support import artifacts


def loaded(folder, **settings):
    return load("jax_export", LoadContext(folder, RuntimeSettings(**settings)))


def x(rows):
    return {"x": np.random.default_rng(rows).standard_normal((rows, 6)).astype(np.float32)}


def exported(folder, function, *shapes, platforms=("cpu",)):
    import jax
    from jax import export

    folder.mkdir(parents=True, exist_ok=True)
    blob = export.export(jax.jit(function), platforms=platforms)(*shapes).serialize()
    (folder / "model.jaxexport").write_bytes(blob)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_it_answers_as_jax_does(tmp_path, rows, weights):
    reference = artifacts.jax_export(tmp_path, weights=weights)
    assert np.allclose(Runner(loaded(tmp_path)).run(x(rows))["y"], reference(x(rows))["y"], atol=1e-5)


def test_the_signature_names_platforms_and_buckets(tmp_path):
    artifacts.jax_export(tmp_path)
    signature = loaded(tmp_path, max_batch_size=10).signature
    assert signature.platforms == ["cpu", "cuda", "tpu"]
    assert signature.buckets == [1, 2, 4, 8, 10]
    assert (signature.inputs[0].shape, signature.outputs[0].shape) == ([-1, 6], [-1, 3])


def test_buckets_of_the_settings_are_used_and_end_in_the_largest_batch(tmp_path):
    artifacts.jax_export(tmp_path)
    assert loaded(tmp_path, max_batch_size=12, buckets=[3, 6, 50]).signature.buckets == [3, 6, 12]


@pytest.mark.parametrize(
    ("constraints", "buckets"),
    [
        (["b <= 32"], [1, 2, 4, 8, 16, 32]),
        (["b <= 5"], [1, 2, 4, 5]),
        (["b >= 4", "b <= 24"], [4, 8, 16, 24]),
        (["mod(b, 8) == 0", "b <= 40"], [8, 16, 32, 40]),
        (["b <= 1000"], [1, 2, 4, 8, 16, 32, 64]),
        (["b == 3"], [3]),
    ],
)
def test_the_authors_constraints_bound_the_buckets_and_every_batch_runs(tmp_path, constraints, buckets):
    reference = artifacts.jax_export(tmp_path, constraints=constraints)
    runner = Runner(loaded(tmp_path))
    assert runner.signature.buckets == buckets
    warmup.warm_up(runner, repeats=1)
    for rows in (1, buckets[-1] // 2 or 1, buckets[-1]):
        assert np.allclose(runner.run(x(rows))["y"], reference(x(rows))["y"], atol=1e-5)
    assert runner.compiles_after_ready == 0


def test_a_wish_beyond_the_authors_bound_is_cut_to_it(tmp_path):
    artifacts.jax_export(tmp_path, constraints=["b <= 32"])
    assert loaded(tmp_path, max_batch_size=100).signature.max_batch_size == 32
    assert loaded(tmp_path, max_batch_size=10).signature.buckets == [1, 2, 4, 8, 10]


@pytest.mark.parametrize("text", ["b <= banana(", "b", "__import__('os')", "b <= 1e9999", "b >= 7 and b"])
def test_an_assertion_that_jax_cannot_read_bounds_nothing(text):
    assert bounds.read([f"symbolic shape constraint {text}. Expected x"], "b") == bounds.Bounds()


def test_constraints_of_other_symbols_do_not_bound_the_batch():
    said = [f"symbolic shape constraint {text}. Expected x" for text in ("s <= 8", "b <= s", "b <= 12")]
    assert bounds.read(said, "b") == bounds.Bounds(1, 12)


def test_a_program_runs_on_the_device_that_was_chosen(tmp_path):
    """Four host devices stand for four accelerators: weights, inputs and results lie on the one that was named."""
    artifacts.jax_export(tmp_path, weights=True)
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", ON_THE_THIRD, str(tmp_path)], check=True, timeout=100, env=environment)


ON_THE_THIRD = """
import sys
from pathlib import Path
import jax, numpy as np
from inference.artifacts.manifest import RuntimeSettings
from inference.models import LoadContext, load
model = load("jax_export", LoadContext(Path(sys.argv[1]), RuntimeSettings(max_batch_size=2), "cpu:2"))
assert len(jax.devices()) == 4
seen = set()
real = jax.device_get
jax.device_get = lambda leaves: seen.update(d for leaf in leaves for d in leaf.devices()) or real(leaves)
assert model.run({"x": np.ones((2, 6), np.float32)})["y"].shape == (2, 3)
assert {d.id for d in seen} == {2} == {d.id for w in model._weights for d in w.devices()}, seen
"""


def test_nothing_compiles_after_the_warm_up(tmp_path):
    artifacts.jax_export(tmp_path)
    runner = Runner(loaded(tmp_path, max_batch_size=8))
    warmup.warm_up(runner, repeats=1)
    assert runner.model.compiles == 4
    for rows in range(1, 9):
        runner.run(x(rows))
    assert runner.compiles_after_ready == 0
    runner.model.run(x(7))  # past the runner's padding: a size that no bucket has
    assert runner.compiles_after_ready == 1


def test_a_fixed_batch_is_padded_to_and_answers_the_same(tmp_path):
    reference = artifacts.jax_export(tmp_path, batch=4)
    model = loaded(tmp_path)
    assert (model.signature.max_batch_size, model.signature.buckets) == (4, [4])
    for rows in (1, 3, 4):
        assert np.allclose(Runner(model).run(x(rows))["y"], reference(x(rows))["y"], atol=1e-5)


def test_a_fixed_first_dimension_that_mixes_rows_is_no_batch(tmp_path):
    import jax

    exported(tmp_path, lambda a: a - a.mean(0), jax.ShapeDtypeStruct((4, 4), np.float32))
    assert loaded(tmp_path).signature.max_batch_size == 0


def test_names_come_from_dictionaries_without_a_plan(tmp_path):
    import jax

    shape = jax.ShapeDtypeStruct((2, 3), np.float32)
    exported(tmp_path, lambda given: {"sum": given["left"] + given["right"]}, {"left": shape, "right": shape})
    model = loaded(tmp_path)
    assert [spec.name for spec in model.signature.inputs] == ["left", "right"]
    assert [spec.name for spec in model.signature.outputs] == ["sum"]


def test_names_are_numbered_without_any(tmp_path):
    import jax

    shape = jax.ShapeDtypeStruct((2, 3), np.float32)
    exported(tmp_path, lambda a, b: (a + b, a - b), shape, shape)
    model = loaded(tmp_path)
    assert [spec.name for spec in model.signature.inputs] == ["input_0", "input_1"]
    assert [spec.name for spec in model.signature.outputs] == ["output_0", "output_1"]


def test_bfloat16_travels_as_uint16(tmp_path):
    import jax
    import ml_dtypes

    exported(tmp_path, lambda a: a * 2, jax.ShapeDtypeStruct((2, 3), jax.numpy.bfloat16))
    model = loaded(tmp_path)
    ones = np.ones((2, 3), ml_dtypes.bfloat16).view(np.uint16)
    assert model.signature.inputs[0].datatype == "BF16"
    assert (model.run({"input_0": ones})["output_0"].view(ml_dtypes.bfloat16) == 2).all()


def test_a_program_for_another_platform_is_rejected_with_the_remedy(tmp_path):
    artifacts.jax_export(tmp_path, platforms=["tpu"])
    with pytest.raises(Rejected, match="tpu") as caught:
        loaded(tmp_path)
    assert "cpu" in caught.value.remedy


@pytest.mark.parametrize(("hidden", "said"), [(True, "xla_ffi_python_cpu_callback"), (False, "safety checks")])
def test_a_python_callback_is_refused_before_it_runs(tmp_path, hidden, said):
    artifacts.jax_callback(tmp_path, hidden=hidden)
    with pytest.raises(Rejected, match=said) as caught:
        loaded(tmp_path)
    assert caught.value.check == "program"


MODULE = """
module @m {{
  func.func public @main(%x: tensor<2x2xf32>) -> tensor<2x2xf32> {{
    {body}
    return %y : tensor<2x2xf32>
  }}
}}
"""
CALL = "%y = stablehlo.custom_call @{target}(%x) : (tensor<2x2xf32>) -> tensor<2x2xf32>"
FEED = (
    "%t = stablehlo.create_token : !stablehlo.token\n"
    '%r:2 = "stablehlo.infeed"(%t) : (!stablehlo.token) -> (tensor<2x2xf32>, !stablehlo.token)\n'
    "%y = stablehlo.add %x, %r#0 : tensor<2x2xf32>"
)
LOOP = """%y = stablehlo.while(%i = %x) : tensor<2x2xf32>
      cond {{ %p = stablehlo.constant dense<true> : tensor<i1>
              stablehlo.return %p : tensor<i1> }}
      do {{ %z = {inner}
            stablehlo.return %z : tensor<2x2xf32> }}"""


def portable(body):
    from jax.extend.mlir import serialize_portable_artifact

    return serialize_portable_artifact(MODULE.format(body=body), "1.0.0")


@pytest.mark.parametrize(
    "target", ["xla_python_cpu_callback", "xla_ffi_python_gpu_callback", "tpu_custom_call", "mosaic_gpu_v2", "system", "__gpu$xla.gpu.triton"]
)  # fmt: skip
def test_custom_calls_beyond_the_list_are_refused(target):
    with pytest.raises(Rejected, match="not on the list"):
        check.check_module(portable(CALL.format(target=target.replace("$", "_"))))


def test_a_call_hidden_in_a_loops_body_is_found():
    inner = "stablehlo.custom_call @evil(%i) : (tensor<2x2xf32>) -> tensor<2x2xf32>"
    with pytest.raises(Rejected, match="evil"):
        check.check_module(portable(LOOP.format(inner=inner)))


def test_operations_that_wait_for_somebody_are_refused():
    with pytest.raises(Rejected, match=r"stablehlo\.(create_token|infeed)"):
        check.check_module(portable(FEED))


def test_plain_arithmetic_and_guaranteed_calls_pass():
    check.check_module(portable("%y = stablehlo.add %x, %x : tensor<2x2xf32>"))
    check.check_module(portable(CALL.format(target="Sharding")))


def test_the_list_is_within_jaxs_own():
    from jax._src.export import _export

    from inference.artifacts.stablehlo import ALLOWED_TARGETS

    assert set() == ALLOWED_TARGETS - _export._CUSTOM_CALL_TARGETS_GUARANTEED_STABLE


def test_linear_algebra_of_jax_passes(tmp_path):
    import jax

    exported(tmp_path, lambda a: jax.numpy.linalg.svd(a)[1], jax.ShapeDtypeStruct((3, 4, 4), np.float32))
    assert loaded(tmp_path).run({"input_0": np.stack([np.eye(4, dtype=np.float32)] * 3)})["output_0"].shape == (3, 4)


@pytest.mark.parametrize("keep", [0, 10, 1000, -10])
def test_a_truncated_blob_is_rejected(tmp_path, keep):
    artifacts.jax_export(tmp_path)
    path = tmp_path / "model.jaxexport"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(Rejected):
        loaded(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"weights": ["other"]}, {"inputs": ["a", "b"]}, {"outputs": []  , "inputs": ["x", "x"]}, {"program": "../model.jaxexport"}, {"extra": 1}],
)  # fmt: skip
def test_a_plan_that_does_not_fit_is_rejected(tmp_path, change):
    artifacts.jax_export(tmp_path / "a", weights=True)
    plan = json.loads((tmp_path / "a/jax.json").read_text()) | change
    (tmp_path / "a/jax.json").write_text(json.dumps(plan))
    with pytest.raises(Rejected) as caught:
        loaded(tmp_path / "a")
    assert caught.value.remedy or "outside" in caught.value.reason
