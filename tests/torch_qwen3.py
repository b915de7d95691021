"""The torch side of `experiments.benchmarks.talk`: Transformers' `generate` on a 50 M Qwen3.

Says `ready`, then answers each line it reads with a line of JSON: seconds of reading 256 tokens
with the first one generated, and of 64 more.
"""

import json
import sys
import time

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

ROWS, SPOKEN = 256, 64


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    config = Qwen3Config(
        vocab_size=24576, hidden_size=512, intermediate_size=1536, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=4, head_dim=64, rms_norm_eps=1e-6,
        rope_theta=1e6, max_position_embeddings=1024, tie_word_embeddings=False,
        eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    prompt = torch.randint(0, 24000, (1, ROWS))

    def clock(count: int) -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                max_new_tokens=count, min_new_tokens=count,
            )  # fmt: skip
        assert out.shape[1] == ROWS + count
        return time.perf_counter() - began

    def run() -> dict[str, float]:
        first = clock(1)
        return {'prefill': first, 'decode': clock(1 + SPOKEN) - first}

    run()
    print('ready', flush=True)
    for _ in sys.stdin:
        print(json.dumps(run()), flush=True)


if __name__ == '__main__':
    main()
