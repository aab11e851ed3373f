"""transformers in bf16: padded `generate` in batches as they come, and its own continuous batching.

Both are asked for exactly as many tokens as every prompt wants; what `generate` computes beyond that, since a batch
goes on until its longest answer is there, counts for nothing.
"""

from __future__ import annotations

import time

import torch
from json_lines import answer_lines
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

PAGE = 32


class Peer:
    def load(self, folder: str, threads: int) -> dict:
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        return {}

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], new_tokens: list[int], slots: int) -> dict:
        self.padded(prompts[:2], 2)
        started = time.perf_counter()
        for start in range(0, len(prompts), slots):
            self.padded(prompts[start : start + slots], max(new_tokens[start : start + slots]))
        return {"seconds": time.perf_counter() - started, "tokens": sum(new_tokens)}

    def padded(self, prompts: list[list[int]], new_tokens: int) -> None:
        """One batch, padded on the left."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
        found = self.model.generate(ids, attention_mask=mask, generation_config=config)
        assert found.shape[1] == longest + new_tokens

    def generate_batch(self, prompts: list[list[int]], new_tokens: list[int], slots: int) -> dict:
        """What its method of that name does, except that each prompt is told its own number of tokens."""
        longest = max(len(prompt) + new for prompt, new in zip(prompts, new_tokens, strict=True))
        room = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=slots * -(-longest // PAGE) + slots,
            max_batch_tokens=512,
            max_requests_per_batch=slots,
            allow_block_sharing=False,
        )
        config = GenerationConfig(max_new_tokens=max(new_tokens), do_sample=False, eos_token_id=-1, pad_token_id=0)
        with self.model.continuous_batching_context_manager(
            generation_config=config, continuous_batching_config=room, timeout=5
        ) as manager:
            self.batched(manager, prompts[:2], [2, 2])
            started = time.perf_counter()
            tokens = self.batched(manager, prompts, new_tokens)
            seconds = time.perf_counter() - started
        return {"seconds": seconds, "tokens": tokens}

    def batched(self, manager, prompts: list[list[int]], new_tokens: list[int]) -> int:
        for prompt, new in zip(prompts, new_tokens, strict=True):
            manager.add_request(prompt, max_new_tokens=new)
        found = []
        while len(found) < len(prompts):
            result = manager.get_result(timeout=60)
            if result is None:
                raise RuntimeError("continuous batching does not answer")
            if result.is_finished():
                found.append(len(result.generated_tokens))
        assert sorted(found) == sorted(new_tokens), "the counts are not those asked for"
        return sum(found)


if __name__ == "__main__":
    peer = Peer()
    answer_lines({name: getattr(peer, name) for name in ("load", "generate", "generate_batch")})
