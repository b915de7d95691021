"""A codec directory as released, made by torch of random weights, of any size; and two compared.

    python -m tests.parity.released_codec write DIR        one of the released sizes, 2.8 GB
    python -m tests.parity.released_codec compare A B      ends with 1 if a tensor differs
"""

from pathlib import Path
import sys

import numpy as np
import onnx
import onnx.numpy_helper
import safetensors
from safetensors.torch import save_file
import torch

from mossjax.convert import rules
from mossjax.convert.codec_flow import flow_network
from mossjax.convert.codec_tokenizer import tokenizer_network
from mossjax.convert.flow_config import write_config
from mossjax.convert.flow_rules import flow_rules
from mossjax.convert.hift_config import write as write_hift_config
from mossjax.convert.tokenizer_rules import tokenizer_rules
from mossjax.files import json_text
from mossjax.models.flow.config import FlowConfig
from mossjax.models.speaker.config import CamppConfig
from mossjax.models.tokenizer.config import TokenizerConfig
from mossjax.models.vocoder.hift.config import HiftConfig
from tests.parity import campp_torch, hift_torch
from tests.parity.test_speaker import export

FLOWS = ('flow.pt', 'flow-chunk-5.pt', 'flow-chunk-25.pt')
PARTS = (*FLOWS, 'hift.pt', 'campplus.onnx')


def write(
    root: Path, tokenizer: TokenizerConfig, flow: FlowConfig, hift: HiftConfig, speaker: CamppConfig
) -> None:
    """Writes the directory; every tensor is another."""
    (root / 'flow').mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)

    def drawn(table, shapes):
        return {
            name: 0.05 * torch.randn(shape, generator=generator)
            for name, shape in rules.expected_tensors(table, shapes).items()
        }

    for name, settings in zip(
        ('config.json', 'preprocessor_config.json'), tokenizer.to_hf(), strict=True
    ):
        (root / name).write_text(json_text(settings))
    tensors = drawn(tokenizer_rules('encoder.'), tokenizer_network(tokenizer).shapes)
    save_file(tensors, root / 'model.safetensors', {'format': 'pt'})
    write_config(root / 'flow' / 'config.yaml', flow)
    write_hift_config(root / 'flow' / 'config.yaml', hift)
    for name in FLOWS:
        tensors = drawn(flow_rules(), flow_network(flow).shapes)
        torch.save({**tensors, 'epoch': 3, 'step': 70000}, root / 'flow' / name)
    torch.save(hift_torch.random(hift).state_dict(), root / 'flow' / 'hift.pt')
    network = campp_torch.random(speaker)
    export(network, torch.randn(1, 230, speaker.mels), root / 'flow' / 'campplus.onnx')


def numbers(path: Path) -> dict[str, bytes]:
    """{name: bytes} of the tensors of a file, as its format's own library reads them."""
    if path.suffix == '.onnx':
        stored = onnx.load(path).graph.initializer
        return {x.name: onnx.numpy_helper.to_array(x).tobytes() for x in stored}
    if path.suffix == '.safetensors':
        with safetensors.safe_open(path, 'numpy') as file:
            return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    tensors = torch.load(path, weights_only=True, mmap=True)
    return {
        name: np.ascontiguousarray(x.numpy()).tobytes()
        for name, x in tensors.items() if isinstance(x, torch.Tensor)
    }


def compare(a: Path, b: Path) -> dict[str, int]:
    """{file: tensors that are not the same} of two directories."""
    differing = {}
    for name in ('model.safetensors', *(f'flow/{part}' for part in PARTS)):
        one, other = numbers(a / name), numbers(b / name)
        differing[name] = sum(one.get(n) != other.get(n) for n in {*one, *other})
    return differing


def main(command: str, *paths: str) -> None:
    if command == 'write':
        write(Path(paths[0]), TokenizerConfig(), FlowConfig(), HiftConfig(), CamppConfig())
    else:
        found = compare(*map(Path, paths))
        print(found)
        sys.exit(any(found.values()))


if __name__ == '__main__':
    main(*sys.argv[1:])
