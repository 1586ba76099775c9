from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from resd_lightning.config import SamplingConfig
from resd_lightning.records import Purpose
from resd_lightning.rollout.engine import GenerationRequest
from resd_lightning.rollout.sampling import SeededSampling, first_in_nucleus

CPU = torch.device("cpu")
PROBABILITIES = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.03, 0.01])
LOGITS = PROBABILITIES.log()
DRAWS = 5_000
NO_IDS = torch.empty(0, 0, dtype=torch.long)


def draw(seeds: list[int], sampling: SamplingConfig, logits: Tensor = LOGITS) -> list[int]:
    """One token per seed, all from the same logits."""
    scores = logits.expand(len(seeds), -1).clone()
    return SeededSampling(seeds, sampling, CPU)(NO_IDS, scores).argmax(dim=-1).tolist()


def seeds_of_requests(number: int) -> list[int]:
    return [GenerationRequest(Purpose.ROLLOUT, 3, "example", sample, ()).seed(17) for sample in range(number)]


def chi_square(drawn: list[int], probabilities: Tensor) -> float:
    counts = Counter(drawn)
    return sum(
        (counts[token] - len(drawn) * p) ** 2 / (len(drawn) * p) for token, p in enumerate(probabilities.tolist()) if p
    )


def test_samples_of_different_requests_follow_the_softmax() -> None:
    drawn = draw(seeds_of_requests(DRAWS), SamplingConfig(temperature=1.0, top_p=1.0))
    assert chi_square(drawn, PROBABILITIES) < 22.5  # 99.9 % of chi-square with 6 degrees of freedom


def test_successive_tokens_of_one_request_follow_the_softmax() -> None:
    processor = SeededSampling(seeds_of_requests(1), SamplingConfig(temperature=1.0, top_p=1.0), CPU)
    drawn = [int(processor(NO_IDS, LOGITS[None].clone()).argmax()) for _ in range(DRAWS)]
    assert chi_square(drawn, PROBABILITIES) < 22.5
    # Neighbours are independent: pairs follow the product.
    pairs = [7 * one + two for one, two in zip(drawn[::2], drawn[1::2], strict=True)]
    assert chi_square(pairs, torch.outer(PROBABILITIES, PROBABILITIES).flatten()) < 85.4  # 99.9 %, 48 degrees


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    drawn = draw(seeds_of_requests(DRAWS), SamplingConfig(temperature=temperature, top_p=1.0))
    assert chi_square(drawn, (LOGITS / temperature).softmax(dim=-1)) < 22.5
    assert chi_square(drawn, PROBABILITIES) > 22.5


def nucleus(logits: Tensor, top_p: float) -> set[int]:
    """The tokens that are returned where noise puts them first; one row for each."""
    rows = logits.expand(len(logits), -1)
    drawn = first_in_nucleus(torch.eye(len(logits), dtype=logits.dtype), rows, top_p).squeeze(-1)
    return {token for token in range(len(logits)) if drawn[token] == token}


@pytest.mark.parametrize(
    ("top_p", "support"),
    [(0.3, 1), (0.5, 2), (0.7, 3), (0.85, 4), (0.92, 5), (0.98, 6), (1.0, 7)],
)
def test_the_nucleus_is_the_smallest_set_that_holds_top_p(top_p: float, support: int) -> None:
    shuffled = torch.tensor([3, 0, 6, 1, 5, 2, 4])  # the order of tokens must not matter
    assert {int(shuffled[i]) for i in nucleus(LOGITS[shuffled], top_p)} == set(range(support))
    assert PROBABILITIES[:support].sum() >= top_p - 1e-6
    assert support == 1 or PROBABILITIES[: support - 1].sum() < top_p


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 0.999])
def test_samples_are_those_of_a_nucleus_found_by_sorting(top_p: float) -> None:
    numbers = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5000, generator=numbers, dtype=torch.float64)
    logits *= torch.tensor([[8.0], [1.0], [0.01], [3.0]])  # from a few likely tokens to all alike
    descending, order = logits.sort(dim=-1, descending=True)
    mass = descending.softmax(dim=-1)
    kept = descending.masked_fill(mass.cumsum(dim=-1) - mass >= top_p, -torch.inf)
    expected = torch.empty_like(logits).scatter_(-1, order, kept)
    for _ in range(50):
        noise = -torch.empty_like(logits).exponential_(generator=numbers).log()
        noisy = logits + noise
        drawn = first_in_nucleus(noisy, logits, top_p)
        assert torch.equal(drawn, (expected + noise).argmax(dim=-1, keepdim=True))
        assert torch.equal(drawn, noisy.argmax(dim=-1, keepdim=True))  # what was passed over is no longer the largest
        for row in range(4):  # whoever shares the batch
            alone = (logits + noise)[row : row + 1]
            assert torch.equal(first_in_nucleus(alone, logits[row : row + 1], top_p)[0], drawn[row])


def test_tokens_as_likely_as_the_last_of_the_nucleus_are_in_it() -> None:
    assert nucleus(torch.tensor([2.0, 0.0, 1.0, 1.0, 1.0]), 0.6) == {0, 2, 3, 4}


def test_forbidden_tokens_stay_forbidden() -> None:
    logits = torch.tensor([0.0, -torch.inf, -torch.inf, 1.0])
    for top_p in (0.9, 0.9999999):
        assert nucleus(logits, top_p) == {0, 3}
    assert nucleus(logits, 0.5) == {3}


def test_samples_of_a_nucleus_follow_its_renormalised_softmax() -> None:
    drawn = draw(seeds_of_requests(DRAWS), SamplingConfig(temperature=1.0, top_p=0.7))
    assert set(drawn) == {0, 1, 2}
    assert chi_square(drawn, PROBABILITIES[:3] / PROBABILITIES[:3].sum()) < 13.8  # 99.9 %, 2 degrees


def test_the_nucleus_is_taken_after_the_temperature() -> None:
    # At temperature 1/4 the first token alone holds 0.86.
    assert set(draw(seeds_of_requests(200), SamplingConfig(temperature=0.25, top_p=0.8))) == {0}


def test_the_most_likely_token_always_stays() -> None:
    assert set(draw(seeds_of_requests(50), SamplingConfig(temperature=1.0, top_p=1e-9))) == {0}


def test_tokens_that_a_guide_has_masked_are_never_drawn() -> None:
    masked = LOGITS.clone()
    masked[[0, 2, 4]] = -torch.inf
    for top_p in (0.9, 1.0):
        drawn = draw(seeds_of_requests(1000), SamplingConfig(temperature=1.0, top_p=top_p), masked)
        assert not set(drawn) & {0, 2, 4}


def test_temperature_0_leaves_the_logits_alone() -> None:
    scores = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    processor = SeededSampling([1, 2, 3], SamplingConfig(temperature=0.0, top_p=0.5), CPU)
    assert torch.equal(processor(NO_IDS, scores.clone()), scores)


def test_a_rows_noise_is_its_own_whatever_its_neighbours() -> None:
    logits = torch.zeros(50)
    alone = {seed: draw([seed], SamplingConfig(top_p=1.0), logits) for seed in range(8)}
    for order in ([0, 1, 2, 3, 4, 5, 6, 7], [7, 3, 5], [2]):
        together = draw(order, SamplingConfig(top_p=1.0), logits)
        assert together == [alone[seed][0] for seed in order]
    assert len({tuple(token) for token in alone.values()}) > 4


def test_every_part_of_a_request_but_its_text_makes_its_seed() -> None:
    def seed(
        run: int = 0, purpose: Purpose = Purpose.ROLLOUT, update: int = 0, example: str = "e", sample: int = 0
    ) -> int:
        return GenerationRequest(purpose, update, example, sample, ()).seed(run)

    seeds = [
        seed(),
        seed(run=1),
        seed(purpose=Purpose.REFLECT),
        seed(purpose=Purpose.VALIDATE),
        seed(update=1),
        seed(example="f"),
        seed(sample=1),
        seed(update=11, sample=1),
        seed(update=1, sample=11),
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= number < 2**63 for number in seeds)
    assert seed() == seed()
    with_text = GenerationRequest(Purpose.ROLLOUT, 0, "e", 0, ({"role": "user", "content": "x"},))
    assert with_text.seed(0) == seed()
