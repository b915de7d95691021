"""Shared by all tests: eight virtual CPU devices, exact matmuls, quick compiles, golden files."""

import json
import os
import pathlib

# Before jax is imported: its devices are fixed at the first use.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = (
        os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
    ).strip()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_default_matmul_precision', 'highest')
# Large programs on few numbers: the compiler takes half the time, and they run more slowly. What a
# test starts in a process of its own (demo, guide, notebook) compiles as users' programs do.
jax.config.update('jax_disable_most_optimizations', True)

GOLDEN = pathlib.Path(__file__).parent / 'golden'


@pytest.fixture(autouse=True)
def _seeds():
    """The global numpy state, for code we call that draws from it; our own tests use `rng`."""
    np.random.seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope='session')
def golden():
    """golden('tokenizer/resample.npz') -> contents: a dict of arrays, or parsed JSON.

    Reads .npz, .safetensors and .json under tests/golden; any other suffix gives the path.
    """
    return load_golden


def load_golden(name: str):
    path = GOLDEN / name
    if path.suffix == '.npz':
        with np.load(path) as arrays:
            return dict(arrays)
    if path.suffix == '.safetensors':
        from safetensors.numpy import load_file

        return load_file(path)
    if path.suffix == '.json':
        return json.loads(path.read_text())
    return path
