"""Both models through lm-evaluation-harness: its tasks, prompts and answers, edgepack's scorers.

The harness is imported only when a task of it is run; which items were right is compared by `fidelity.tasks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.edge.fidelity.agreement import TruncatedPredictions, log_softmax
from edgepack.edge.fidelity.scorers.scorer import Chunk
from edgepack.edge.fidelity.tasks.tasks import Comparison, compare_answers
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgepack.edge.fidelity.scorers.scorer import Scorer

_MEASURES = ("acc", "acc_norm", "exact_match")
_LONGEST_ANSWER = 256


class HarnessRequests:
    """Answers the harness's three kinds of request with a scorer, one after the other."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self._scorer = scorer

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """For each (context, continuation): log p in nats, and whether it is the greedy continuation."""
        return [self._continuation(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """For each text: log p of all of it in nats, cut to the model's context."""
        return [self._continuation("", request.args[0])[0] for request in requests]

    def generate_until(self, requests: list[Any]) -> list[str]:
        """For each (context, options): the greedy continuation up to one of `until`."""
        return [self._generate(request.args[0], request.args[1]) for request in requests]

    def _continuation(self, context: str, continuation: str) -> tuple[float, bool]:
        tokens = self._scorer.tokenizer.tokenize(context + continuation)
        before = self._scorer.tokenizer.tokenize(context)
        shared = min(len(before), len(tokens))
        differing = np.flatnonzero(before[:shared] != tokens[:shared])
        first = max(0, min(int(differing[0]) if len(differing) else shared, len(tokens) - 1) - 1)
        cut = max(0, len(tokens) - self._scorer.context_limit)
        tokens, first = tokens[cut:], max(0, first - cut)
        log_p = log_softmax(self._logits(tokens, first))
        targets = tokens[first + 1 :]
        value = float(log_p[np.arange(len(log_p)), targets].sum())
        return value, bool((log_p.argmax(axis=1) == targets).all())

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        tokens = self._scorer.tokenizer.tokenize(context)[-self._scorer.context_limit + _LONGEST_ANSWER :]
        stops, text = options.get("until") or [], ""
        for _ in range(min(int(options.get("max_gen_toks", _LONGEST_ANSWER)), _LONGEST_ANSWER)):
            padded = np.append(tokens, tokens[-1]).astype(np.int32)
            token = int(self._logits(padded, len(tokens) - 1)[0].argmax())
            tokens = np.append(tokens, token).astype(np.int32)
            text += self._scorer.tokenizer.piece(token)
            found = [text.index(stop) for stop in stops if stop in text]
            if found:
                return text[: min(found)]
        return text

    def _logits(self, tokens: NDArray[np.int32], first: int) -> NDArray[np.float32]:
        logits = self._scorer.score(Chunk(0, 0, tokens, tokens[1:], first))
        if isinstance(logits, TruncatedPredictions):
            raise UsageError(f"{self._scorer.label}: a stored reference answers no tasks")
        return logits


def run_harness(
    tasks: list[Any], reference: Scorer, candidate: Scorer, limit: int | None = None
) -> dict[str, dict[str, Comparison]]:
    """Both models on tasks of the harness: task → measure → both compared.

    Args:
        tasks: names, or task objects of the harness.
        reference: the original.
        candidate: the file.
        limit: only the first items of each.
    """
    sides = [_samples(tasks, scorer, limit) for scorer in (reference, candidate)]
    return {
        task: {
            measure: compare_answers(*[[bool(sample[measure]) for sample in side[task]] for side in sides])
            for measure in _MEASURES
            if all(measure in sample for side in sides for sample in side[task])
        }
        for task in sides[0]
    }


def _samples(tasks: list[Any], scorer: Scorer, limit: int | None) -> dict[str, list[dict[str, Any]]]:
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM

    model = type("HarnessModel", (HarnessRequests, LM), {})(scorer)  # the harness wants a subclass of its own class
    results = simple_evaluate(
        model=model, tasks=tasks, limit=limit, log_samples=True, bootstrap_iters=0, verbosity="ERROR"
    )
    return {task: sorted(samples, key=lambda sample: sample["doc_id"]) for task, samples in results["samples"].items()}
