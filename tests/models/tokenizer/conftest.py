"""The recorded small codec as a directory."""

import pathlib
import shutil

import pytest

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden/tokenizer'


@pytest.fixture(scope='session')
def codec_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp('codec')
    for source, name in (
        ('small_config.json', 'config.json'), ('small_model.safetensors', 'model.safetensors'),
        ('preprocessor_config.json', 'preprocessor_config.json'),
    ):
        shutil.copyfile(GOLDEN / source, root / name)
    return root
