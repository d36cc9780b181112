"""Training of maps: exact reconstruction losses, and divergence that never rises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from attention_models import some_tokens, tiny

from edgepack.errors import NumericError, UsageError
from edgepack.quant.attention.eigen import EigenAttention
from edgepack.quant.attention.judging import answers, judge
from edgepack.quant.attention.moments import Moments
from edgepack.quant.attention.projector import LearnableProjector
from edgepack.quant.attention.training import (
    TrainingSettings,
    distil,
    reconstruction_error,
    train_reconstruction,
)


def test_reconstruction_error_is_that_of_the_vectors_themselves() -> None:
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(1, 1, 50, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 1.5
    flat = vectors[0, 0].double()
    mean, root = flat.mean(0), torch.randn(6, 6, generator=generator).double()
    covariance = (flat - mean).T @ (flat - mean) / len(flat)
    moments, metric = Moments(mean[None], covariance[None], len(flat)), (root @ root.T)[None]
    projector = LearnableProjector.from_moments(moments, 2)
    with torch.no_grad():
        projector.mean.add_(0.3)  # a mean of its own counts too
        rest = (vectors - projector(vectors))[0, 0].double()
    wanted = ((rest @ metric[0]) * rest).sum(-1).mean() / (covariance * metric[0]).sum()
    assert float(reconstruction_error(projector, moments, metric).detach()) == pytest.approx(float(wanted), rel=1e-4)


def test_training_on_reconstruction_nears_the_best_there_is() -> None:
    model, tokens = tiny("llama"), some_tokens()
    settings: dict[str, Any] = {"key_rank": 6, "value_rank": 6, "joined": "layer"}
    errors = {}
    for metric in ("plain", "scores"):
        with EigenAttention.fit(model, tokens, metric=metric, **settings) as eigen:
            errors[metric] = train_reconstruction(eigen, steps=150)
    for plain, best in zip(errors["plain"], errors["scores"], strict=True):
        assert plain.after < 0.5 * plain.before + 0.5 * best.before, "half of the way at least"
        assert plain.after >= best.before - 1e-3
        assert best.after <= best.before
        assert best.after == pytest.approx(best.before, abs=1e-3), "principal components of the metric are its minimum"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_distilling_lowers_divergence_and_leaves_the_model_alone(family: str) -> None:
    model, tokens = tiny(family).requires_grad_(False), some_tokens(32, 24)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with EigenAttention.fit(model, tokens, key_rank=3, value_rank=3) as eigen:
        student, settings = answers(model, eigen.cache), TrainingSettings(steps=40, rate=3e-3)
        before = judge(answers(model), student, tokens)
        found = distil(answers(model), student, eigen.parameters(), tokens, settings)
        after = judge(answers(model), student, tokens)
    assert found.after < found.before
    assert after.kl < before.kl
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_rate_that_only_harms_gives_back_what_was() -> None:
    model, tokens = tiny("llama").requires_grad_(False), some_tokens(4, 12)
    with EigenAttention.fit(model, tokens, key_rank=6, value_rank=6) as eigen:
        kept = [each.detach().clone() for each in eigen.parameters()]
        settings = TrainingSettings(steps=12, rate=30.0, looks=6, patience=2)
        found = distil(answers(model), answers(model, eigen.cache), eigen.parameters(), tokens, settings)
        assert found.after == found.before
        assert found.steps == 4, "two looks without a new best end a run"
        assert all(torch.equal(a, b) for a, b in zip(eigen.parameters(), kept, strict=True))


def test_a_model_agrees_with_itself() -> None:
    model = tiny("llama")
    found = judge(answers(model), answers(model), some_tokens(2, 9))
    assert (found.kl, found.top1, found.positions) == (pytest.approx(0, abs=1e-6), 1.0, 18)


def test_only_scored_positions_are_judged() -> None:
    model = tiny("llama")

    def wrong_at_first(sequence: torch.Tensor) -> torch.Tensor:
        logits = answers(model)(sequence).clone()
        logits[:4] = -logits[:4]
        return logits

    assert judge(answers(model), wrong_at_first, some_tokens(2, 9)).kl > 0
    found = judge(answers(model), wrong_at_first, some_tokens(2, 9), slice(4, -1))
    assert (found.kl, found.positions) == (pytest.approx(0, abs=1e-6), 8)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"rate": 0.0}, {"rate": math.inf}, {"held_out": 1.0}, {"looks": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="training: expected"):
        TrainingSettings(**settings)


def test_one_sequence_and_divergence_without_end_are_refused() -> None:
    model = tiny("llama").requires_grad_(False)
    with pytest.raises(UsageError, match="at least 2 sequences"):
        distil(answers(model), answers(model), [], some_tokens(1, 9), TrainingSettings())
    broken = torch.nn.Parameter(torch.tensor(math.nan))
    with pytest.raises(NumericError, match="expected finite numbers, got a loss of nan"):
        distil(
            answers(model), lambda s: answers(model)(s) * broken, [broken], some_tokens(3, 9), TrainingSettings(steps=1)
        )
