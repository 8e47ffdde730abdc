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
    assert env["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.50"


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
