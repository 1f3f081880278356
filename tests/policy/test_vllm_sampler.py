"""The sampler that vLLM gets on a CPU: the right distribution, and drafts that change no token."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch

from protege.policy.vllm_sampler import VLLM_PRIVATE, choose, expand_batch_to_tokens, forward_cpu, verify

VOCABULARY = 1000


def logits_of(rows: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def test_tokens_are_chosen_as_often_as_they_are_probable():
    logits = logits_of(1)[0, :600]
    draws = 40_000
    uniform = torch.rand(draws, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    chance = logits.softmax(-1)
    tokens, _ = choose(chance.expand(draws, -1), uniform)
    counts = torch.bincount(tokens, minlength=600).double()
    common = chance * draws > 8
    expected = chance[common].double() * draws
    statistic = float(((counts[common] - expected) ** 2 / expected).sum())
    freedom = int(common.sum()) - 1
    assert abs(statistic - freedom) < 5 * (2 * freedom) ** 0.5, "chi-square"
    assert freedom > 30


def test_the_edges_of_the_cumulated_probabilities():
    weights = torch.zeros(4, 1024)
    weights[:, 300], weights[:, 900] = 1.0, 3.0
    below = 1 - 2**-53
    tokens, total = choose(weights, torch.tensor([0.0, 0.25, 0.2499, below], dtype=torch.float64))
    assert tokens.tolist() == [300, 900, 300, 900] and total.tolist() == [4.0] * 4
    flat = torch.full((2, 1000), 1 / 3)  # 1000 is no multiple of a block: what fills it up is never drawn
    assert choose(flat, torch.tensor([0.0, below], dtype=torch.float64))[0].tolist() == [0, 999]


def sampling(generators: list[torch.Generator], temperature: list[float], **changes) -> SimpleNamespace:
    nothing = SimpleNamespace(argmax_invariant=[], non_argmax_invariant=[])
    given = {
        "temperature": torch.tensor(temperature), "top_k": None, "top_p": None, "no_penalties": True,
        "generators": dict(enumerate(generators)), "max_num_logprobs": 0, "allowed_token_ids_mask": None,
        "bad_words_token_ids": {}, "logprob_token_ids": None, "logitsprocs": nothing, "thinking_budget_state_holder": None,
    }  # fmt: skip
    return SimpleNamespace(**{**given, **changes})


class Drafted:
    """vLLM's RejectionSampler with ours in the place of its forward."""

    def __init__(self) -> None:
        self.sampler = SimpleNamespace(logprobs_mode="processed_logprobs")
        self.synthetic_mode = False
        self.stock: list[object] = []

    def __call__(self, drafts: list[list[int]], logits: torch.Tensor, metadata: SimpleNamespace):
        flat = torch.tensor([token for draft in drafts for token in draft], dtype=torch.int32)
        about = SimpleNamespace(
            num_draft_tokens=[len(draft) for draft in drafts], draft_token_ids=flat, max_spec_len=max(map(len, drafts))
        )
        return verify(lambda *given: self.stock.append(given))(self, about, None, logits.clone(), metadata)


def one_by_one(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> tuple[list[int], list[float]]:
    """The tokens of successive positions, sampled without drafts, and their log-probabilities."""
    plain = forward_cpu(lambda *_: pytest.fail("left to vLLM"))
    owner = SimpleNamespace(logprobs_mode="processed_logprobs")
    tokens, logprobs = [], []
    for row in logits:
        token, all_of = plain(owner, row[None] / temperature, {0: generator}, None, None)
        tokens.append(int(token))
        logprobs.append(float(all_of[0, token]))
    return tokens, logprobs


def test_drafts_change_no_token_no_probability_and_no_random_number():
    """Right drafts, wrong ones, none, and right up to a point: each request samples what it would have sampled alone."""
    logits, temperature = logits_of(14), 0.7
    alone = [
        one_by_one(logits[a:b], temperature, torch.Generator().manual_seed(a))
        for a, b in ((0, 5), (5, 6), (6, 10), (10, 14))
    ]
    wrong = (alone[3][0][1] + 1) % VOCABULARY
    drafts = [alone[0][0][:4], [], [(alone[2][0][0] + 1) % VOCABULARY, 3, 4], [alone[3][0][0], wrong, alone[3][0][2]]]
    generators = [torch.Generator().manual_seed(start) for start in (0, 5, 6, 10)]
    sampler = Drafted()
    output = sampler(drafts, logits, sampling(generators, [temperature] * 4))
    kept = [[token for token in row if token >= 0] for row in output.sampled_token_ids.tolist()]
    assert [len(row) for row in kept] == [5, 1, 1, 2]
    assert kept == [tokens[: len(row)] for (tokens, _), row in zip(alone, kept, strict=True)]
    given = output.logprobs_tensors.logprobs.view(4, 5)
    for row, (_, logprobs), mine in zip(kept, alone, given, strict=True):
        assert mine[: len(row)].tolist() == pytest.approx(logprobs[: len(row)], abs=1e-5)
    for generator, start, row in zip(generators, (0, 5, 6, 10), kept, strict=True):
        expected = torch.Generator().manual_seed(start)
        torch.rand(len(row), dtype=torch.float64, generator=expected)
        assert torch.equal(generator.get_state(), expected.get_state()), "as many numbers drawn as tokens sampled"
    assert not sampler.stock


def test_greedy_requests_take_the_most_probable_token():
    logits = logits_of(3)
    best = logits.argmax(-1).tolist()
    output = Drafted()([best[:1], []], logits, sampling([], [0.0, 0.0], max_num_logprobs=None))
    assert output.sampled_token_ids.tolist() == [best[:2], [best[2], -1]] and output.logprobs_tensors is None


def test_the_rank_of_a_token_is_the_count_of_those_at_least_as_probable():
    logits = logits_of(1)
    output = Drafted()(
        [
            [],
        ],
        logits,
        sampling([torch.Generator().manual_seed(3)], [1.0]),
    )
    token = int(output.sampled_token_ids[0, 0])
    assert int(output.logprobs_tensors.selected_token_ranks[0]) == int((logits >= logits[0, token]).sum())


@pytest.mark.parametrize(
    "changes",
    [
        {"top_p": torch.tensor([0.9])},
        {"no_penalties": False},
        {"bad_words_token_ids": {0: [[1]]}},
        {"logitsprocs": SimpleNamespace(argmax_invariant=[object()], non_argmax_invariant=[])},
    ],
)
def test_what_asks_for_more_is_left_to_vllm(changes):
    sampler = Drafted()
    sampler([[]], logits_of(1), sampling([torch.Generator()], [1.0], **changes))
    assert len(sampler.stock) == 1


def test_a_temperature_is_no_integer():
    """vLLM 0.31's own kernel makes one of it, and leaves what it should have written as it was."""
    found = expand_batch_to_tokens(torch.tensor([0.7, 0.0, 1.5]), torch.tensor([2, 2, 3]), 3, 0, 1)
    assert found.tolist() == pytest.approx([0.7, 0.7, 1.5])
    assert expand_batch_to_tokens(torch.tensor([0.0, 0.3]), torch.tensor([1, 2]), 2, 0, 1).tolist() == pytest.approx(
        [1, 0.3]
    )


@pytest.mark.parametrize("name", VLLM_PRIVATE)
def test_vllm_still_has_what_is_replaced(name):
    module, _, path = name.partition(":")
    found = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
