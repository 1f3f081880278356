"""vLLM's sampler on a CPU: one random number for each token of a seeded request, with and without drafted tokens.

A plugin (entry point ``vllm.general_plugins``) that vLLM loads in each of its processes and that does nothing where
``ModelServer`` has not asked for it. vLLM 0.31 draws one exponential number for each entry of the vocabulary, twice, and on a
CPU it divides the logits of drafted tokens by uninitialised memory (its ``expand`` kernel takes the temperature for an
integer), so that their log-probabilities are no numbers.

Here a token is where a uniform number falls in the cumulated probabilities. A draft is accepted where it *is* that token:
for drafts without probabilities of their own (n-grams) that is the same as rejection sampling (Leviathan et al. 2023), and a
request draws the same numbers, and so samples the same tokens, as without drafts. What asks for more than temperature and
seed (top-k, top-p, penalties, …) is left to vLLM.
"""

from __future__ import annotations

import os
from itertools import accumulate
from typing import Any

import torch

from protege.policy.server import SAMPLER

VLLM_PRIVATE = (
    "vllm.v1.sample.ops.topk_topp_sampler:TopKTopPSampler.forward_cpu",
    "vllm.v1.sample.rejection_sampler:RejectionSampler.forward",
    "vllm.v1.sample.rejection_sampler:expand_batch_to_tokens",
    "vllm.v1.sample.rejection_sampler:PLACEHOLDER_TOKEN_ID",
)
"""What of vLLM this replaces or reads; tests/policy/test_vllm_sampler.py names them too."""
_BLOCK = 256
_KNOWN = {
    "MinTokensLogitsProcessor": "min_toks",
    "LogitBiasLogitsProcessor": "biases",
    "MinPLogitsProcessor": "min_p_count",
}


def choose(weights: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices [N] where ``uniform`` [N] in [0, 1) falls in each row's cumulated weights [N, V] >= 0, and the rows' sums [N].

    Sums of blocks first, then within one block: two short searches instead of a cumulated sum over the vocabulary.
    """
    rows, size = weights.shape
    if size % _BLOCK:
        weights = torch.nn.functional.pad(weights, (0, _BLOCK - size % _BLOCK))
    blocks = weights.view(rows, -1, _BLOCK)
    ends = blocks.sum(-1).double().cumsum_(-1)
    total = ends[:, -1]
    aim = (uniform * total)[:, None]
    block = torch.searchsorted(ends, aim, right=True).clamp_(max=ends.shape[1] - 1)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    inner = blocks[torch.arange(rows), block[:, 0]]
    place = torch.searchsorted(inner.double().cumsum_(-1), aim - before, right=True)
    # Rounding may leave the aim behind its block's last token that can be drawn.
    last = _BLOCK - 1 - (inner.flip(-1) > 0).int().argmax(-1, keepdim=True)
    return (block * _BLOCK + torch.minimum(place, last))[:, 0], total


def register() -> None:
    """Put the functions below in the place of vLLM's, in this process. Idempotent."""
    if os.environ.get(SAMPLER) != "1":
        return
    from vllm.v1.sample import rejection_sampler
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    if TopKTopPSampler.forward_cpu.__module__ == __name__:
        return
    TopKTopPSampler.forward_cpu = forward_cpu(TopKTopPSampler.forward_cpu)  # type: ignore[method-assign]
    rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens
    rejection_sampler.RejectionSampler.forward = verify(rejection_sampler.RejectionSampler.forward)  # type: ignore[method-assign]


def forward_cpu(stock: Any) -> Any:
    """``TopKTopPSampler.forward_cpu`` for batches of seeded requests."""

    def forward(self: Any, logits: Any, generators: dict[int, torch.Generator], k: Any, p: Any) -> tuple[Any, Any]:
        modes = {"processed_logprobs", "raw_logprobs"}
        if k is not None or p is not None or len(generators) < len(logits) or self.logprobs_mode not in modes:
            sampled: tuple[Any, Any] = stock(self, logits, generators, k, p)
            return sampled
        uniform = torch.cat([_drawn(generators[row], 1) for row in range(len(logits))])
        logprobs = logits.log_softmax(-1, dtype=torch.float32)
        tokens, _ = choose(logprobs.exp(), uniform)
        return tokens, logprobs if self.logprobs_mode == "processed_logprobs" else None

    return forward


def expand_batch_to_tokens(
    x: torch.Tensor, cu_num_tokens: torch.Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> torch.Tensor:
    """vLLM's function of that name, for any dtype: each request's value as often as it has drafted tokens."""
    counts = torch.diff(cu_num_tokens.long(), prepend=cu_num_tokens.new_zeros(1).long())
    return torch.where(x == replace_from, replace_to, x).to(x.dtype).repeat_interleave(counts, output_size=num_tokens)


def verify(stock: Any) -> Any:
    """``RejectionSampler.forward`` for drafts without probabilities."""

    def forward(self: Any, metadata: Any, draft_probs: Any, logits: Any, sampling_metadata: Any) -> Any:
        if draft_probs is not None or not _plain(self, sampling_metadata):
            return stock(self, metadata, draft_probs, logits, sampling_metadata)
        from vllm.v1.outputs import LogprobsTensors, SamplerOutput
        from vllm.v1.sample.rejection_sampler import PLACEHOLDER_TOKEN_ID

        counts: list[int] = metadata.num_draft_tokens
        sizes = [count + 1 for count in counts]
        starts = [end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]
        temperature = sampling_metadata.temperature
        if temperature is None:
            temperature = torch.zeros(len(sizes))
        random = [float(value) > 1e-5 for value in temperature]
        scaled = logits.float()
        divisors = torch.tensor([float(t) if r else 1.0 for t, r in zip(temperature, random, strict=True)])
        scaled = scaled.div_(divisors.repeat_interleave(torch.tensor(sizes))[:, None])
        top, best = scaled.max(-1)
        weights = (scaled - top[:, None]).exp_()

        states: dict[int, torch.Tensor] = {}
        uniform = torch.zeros(len(scaled), dtype=torch.float64)
        for request, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            generator = sampling_metadata.generators.get(request)
            if random[request]:
                if generator is not None and size > 1:
                    states[request] = generator.get_state()
                uniform[start : start + size] = _drawn(generator, size)
        tokens, total = choose(weights, uniform)
        greedy = torch.tensor([not value for value in random]).repeat_interleave(torch.tensor(sizes))
        tokens = torch.where(greedy, best, tokens)

        chosen, drafts = tokens.tolist(), metadata.draft_token_ids.tolist()
        width = metadata.max_spec_len + 1
        found = torch.full((len(sizes), width), PLACEHOLDER_TOKEN_ID, dtype=torch.int32)
        place = torch.zeros((len(sizes), width), dtype=torch.long)
        for request, (start, count) in enumerate(zip(starts, counts, strict=True)):
            before = start - request  # drafts of the requests before it; each of those has one row more
            mine, drafted = chosen[start : start + count + 1], drafts[before : before + count]
            kept = next((i for i, (a, b) in enumerate(zip(mine, drafted, strict=False)) if a != b), count) + 1
            found[request, :kept] = torch.tensor(mine[:kept], dtype=torch.int32)
            place[request, :kept] = torch.arange(start, start + kept)
            if request in states and kept <= count:  # as many numbers as tokens, like a request without drafts
                sampling_metadata.generators[request].set_state(states[request])
                _drawn(sampling_metadata.generators[request], kept)

        logprobs = None
        if sampling_metadata.max_num_logprobs is not None:
            normal = scaled.sub_((top + total.log().float())[:, None])
            if sampling_metadata.max_num_logprobs == 0:
                own = normal.gather(1, tokens[:, None])
                every = LogprobsTensors(tokens[:, None].int(), own, (normal >= own).sum(-1))
            else:
                every = self.sampler.gather_logprobs(normal, sampling_metadata.max_num_logprobs, tokens)
            rows = place.flatten()
            logprobs = LogprobsTensors(
                every.logprob_token_ids[rows], every.logprobs[rows], every.selected_token_ranks[rows]
            )
        return SamplerOutput(sampled_token_ids=found, logprobs_tensors=logprobs)

    return forward


def _drawn(generator: torch.Generator | None, count: int) -> torch.Tensor:
    return torch.rand(count, dtype=torch.float64, generator=generator)


def _plain(sampler: Any, metadata: Any) -> bool:
    """Whether temperature and seed are all that the batch asks for."""
    processors = [*metadata.logitsprocs.argmax_invariant, *metadata.logitsprocs.non_argmax_invariant]
    holder = metadata.thinking_budget_state_holder
    return bool(
        sampler.sampler.logprobs_mode == "processed_logprobs"
        and not sampler.synthetic_mode
        and metadata.top_k is None
        and metadata.top_p is None
        and metadata.no_penalties
        and metadata.allowed_token_ids_mask is None
        and not metadata.bad_words_token_ids
        and not metadata.logprob_token_ids
        and not (holder is not None and holder.has_tracked_requests())
        and all(type(one).__name__ in _KNOWN and not getattr(one, _KNOWN[type(one).__name__]) for one in processors)
    )
