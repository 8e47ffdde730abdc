"""A process is narrowed to its one device by its environment, before any framework looks."""

import subprocess
import sys

import pytest

from inference.errors import Unsupported
from inference.runtime import devices


@pytest.fixture
def without_jax(monkeypatch):
    monkeypatch.delitem(sys.modules, "jax", raising=False)


def test_a_cuda_device_is_the_only_one_and_the_first(without_jax):
    env = {}
    assert devices.select("cuda:3", 0.5, env) == "cuda:0"
    assert env["CUDA_VISIBLE_DEVICES"] == "3"
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert env["JAX_PLATFORMS"] == "cuda,cpu"
    assert env["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert env["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5000"


def test_a_tpu_chip_is_the_only_one(without_jax):
    env = {}
    assert devices.select("tpu:2", env=env) == "tpu:0"
    assert env["TPU_VISIBLE_CHIPS"] == "2"
    assert env["CUDA_VISIBLE_DEVICES"] == ""


def test_on_a_cpu_no_accelerator_is_visible(without_jax):
    env = {}
    assert devices.select("cpu", env=env) == "cpu"
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert env["JAX_PLATFORMS"] == "cpu"


def test_without_a_share_nearly_all_of_the_device_may_be_taken(without_jax):
    env = {}
    devices.select("cuda:0", env=env)
    assert env["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.9000"


def test_a_small_share_of_a_large_device_is_not_rounded_to_nothing(without_jax):
    env = {}
    devices.select("cuda:0", 0.0042, env)
    assert float(env["XLA_PYTHON_CLIENT_MEM_FRACTION"]) == 0.0042


@pytest.mark.parametrize("name", ["cuda:3", "tpu:2"])
def test_a_fake_device_is_narrowed_to_like_a_real_one_but_the_cpu_computes(without_jax, name):
    real, fake = {}, {}
    devices.select(name, 0.25, real)
    assert devices.select(name, 0.25, fake, fake=True) == "cpu"
    assert fake.pop("JAX_PLATFORMS") == "cpu"
    assert real.pop("JAX_PLATFORMS") == f"{name.split(':')[0]},cpu"
    assert fake == real


def test_torch_holds_nothing_of_a_device_that_it_never_used():
    code = (
        "import torch; from inference.runtime import devices;"
        "assert devices.torch_bytes('cuda:0') == devices.torch_bytes('cpu') == 0; assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", ["", "gpu:0", "cuda", "cuda:", "cuda:-1", "cuda:x", "tpu", "cuda:0:1", "cpu:x"])
def test_other_names_are_refused(name):
    with pytest.raises(Unsupported, match="no device"):
        devices.parse(name)


def test_jax_that_was_imported_before_is_told_too():
    code = (
        "import jax; from inference.runtime import devices; devices.select('cpu');"
        "assert jax.config.jax_platforms == 'cpu'; assert jax.devices()[0].platform == 'cpu'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_selecting_imports_no_framework():
    code = (
        "import sys; from inference.runtime import devices; devices.select('cpu');"
        "assert not {'torch', 'jax', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
