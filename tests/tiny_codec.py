"""A whole codec directory of golden weights: tokenizer, flow decoder, vocoder, speaker encoder."""

import pathlib
import shutil

import numpy as np

from mossjax.convert import rules
from mossjax.convert.codec_flow import flow_network, save_flow
from mossjax.convert.codec_speaker import campp_network, save_campp
from mossjax.convert.codec_vocoder import save_hift, stored_network
from mossjax.convert.flow_rules import flow_rules
from mossjax.convert.hift_rules import hift_rules
from mossjax.models.flow.config import FlowConfig
from mossjax.models.speaker.config import CamppConfig
from mossjax.models.vocoder.hift.config import HiftConfig

GOLDEN = pathlib.Path(__file__).parent / 'golden'
FLOW = FlowConfig(
    vocab_size=97, input_size=64, width=64, heads=4, ff_width=128, blocks=2, up_blocks=2,
    channels=32, head_dim=16, estimator_heads=4, transformers=2, mid_blocks=2,
)  # fmt: skip
HIFT = HiftConfig(channels=32, f0_width=32)
# Not golden: what is tested with it does not depend on its weights.
SPEAKER = CamppConfig(width=12, growth=4, bottleneck=10, head=4, layers=(1, 1, 1))


def hift_tensors(vectors) -> dict[str, np.ndarray]:
    """The tensors of `hift.npz` by name; they lie there one after another, in order of names."""
    flat = vectors['weights'].T.copy().view('<f4')[:, 0]
    shapes = rules.expected_tensors(hift_rules(HIFT), stored_network(HIFT).shapes)
    tensors = {}
    for name in sorted(shapes):
        size = int(np.prod(shapes[name]))
        tensors[name], flat = flat[:size].reshape(shapes[name]), flat[size:]
    assert not len(flat)
    return tensors


def hift_params(vectors) -> dict:
    """Parameters of `stored_network`."""
    tensors = hift_tensors(vectors)
    return rules.to_params(hift_rules(HIFT), tensors.__getitem__, stored_network(HIFT).shapes)


def write(root: pathlib.Path, golden) -> pathlib.Path:
    """Writes the directory; `golden` is the fixture of this name."""
    root.mkdir(exist_ok=True)
    for source, name in (
        ('small_config.json', 'config.json'), ('small_model.safetensors', 'model.safetensors'),
        ('preprocessor_config.json', 'preprocessor_config.json'),
    ):
        shutil.copyfile(GOLDEN / 'tokenizer' / source, root / name)
    tensors = golden('decoder/flow_state.safetensors')
    flow = rules.to_params(flow_rules(), tensors.__getitem__, flow_network(FLOW).shapes)
    save_flow(root, FLOW, flow)
    save_hift(root, HIFT, hift_params(golden('decoder/hift.npz')))
    save_campp(root, SPEAKER, speaker_params())
    return root


def speaker_params() -> dict:
    """Random parameters of SPEAKER, variances positive."""
    rng, flat = np.random.default_rng(0), {}
    for path, x in rules.flatten(campp_network(SPEAKER).shapes).items():
        value = rng.normal(0, 0.3, x.shape).astype(x.dtype)
        flat[path] = np.abs(value) + 1 if path.endswith('/var') else value
    return rules.unflatten(flat)


def random_params(shapes) -> dict:
    """Parameters of a network whose sound nobody judges; nothing is compiled for them."""
    rng, flat = np.random.default_rng(0), {}
    for path, x in rules.flatten(shapes).items():
        scale = path.endswith('scale')
        flat[path] = np.ones(x.shape, 'f') if scale else rng.normal(0, 0.2, x.shape).astype('f')
    return rules.unflatten(flat)
