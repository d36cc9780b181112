"""A model in xllamacpp's server engine: `engine.OpenModel` over its routes for completions, tokens and embeddings.

Starting it is left to `opening`, the connection to `connection`.
"""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from edgepack.edge.llama.chances import told_chances
from edgepack.edge.llama.constraints.check import Constraint, followed_constraint
from edgepack.edge.llama.engine import UNTOLD_TOKEN, GeneratedToken
from edgepack.edge.llama.interrupt import AbortFlag
from edgepack.edge.llama.options import RuntimeOptions, SamplingOptions
from edgepack.edge.llama.server_engine.opening import RunningEngine
from edgepack.errors import ModelRuntimeError, UsageError
from edgepack.gguf import keys
from edgepack.gguf.reader import read_header

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from typing_extensions import Self

_KEPT_BEGINNING = 4  # tokens that a context shift never forgets: attention leans on the first ones
_AS_IT_IS = -1  # embd_normalize


class ServerModel:
    """A GGUF in xllamacpp's engine; see `engine.OpenModel`.

    Args:
        path: a plain GGUF that has been checked (`edge.llama.check`).
        options: how to open it.
        abort: ends opening, and later what is being generated.

    Raises:
        ModelRuntimeError: llama.cpp refuses the file, an adapter or the options; the text says why.
        UsageError: an option that this engine does not have, or an archive.
    """

    def __init__(self, path: Path, options: RuntimeOptions | None = None, abort: AbortFlag | None = None) -> None:
        from edgepack.packaging.archive import is_archive

        self.path = path
        self.options = options or RuntimeOptions()
        self.abort = AbortFlag() if abort is None else abort
        if is_archive(path):
            raise UsageError("an archive that is not installed: expected the engine llama-cpp-python, got xllamacpp")
        self._header = read_header(path)
        self._engine = RunningEngine(path, self._header, self.options, self.abort)
        self._endpoint = self._engine.endpoint
        try:
            self._facts = self._endpoint.get("/props")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        self._engine.close()

    @property
    def n_ctx(self) -> int:
        """Tokens that the context holds."""
        return int(self._facts["default_generation_settings"]["n_ctx"])

    @property
    def n_ctx_train(self) -> int:
        """The context that the model was trained with."""
        return int(self._of_architecture("context_length"))

    @property
    def n_vocab(self) -> int:
        """Tokens in the vocabulary."""
        tokens = self._header.get(keys.TOKENS)
        return len(tokens) if tokens else int(self._of_architecture("vocab_size") or 0)

    @property
    def n_embd(self) -> int:
        """Width of an embedding."""
        return int(self._of_architecture("embedding_length_out") or self._of_architecture("embedding_length"))

    @property
    def threads(self) -> int:
        """Threads that generation uses."""
        from edgepack.edge.llama.cpu_threads import free_cores

        return self.options.threads or free_cores()

    @property
    def bos_text(self) -> str:
        """The spelling of the token that begins a text; empty where there is none."""
        return str(self._facts.get("bos_token", ""))

    def _of_architecture(self, name: str) -> Any:
        return self._header.get(f"{self._header.get(keys.ARCHITECTURE)}.{name}")

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`; see `OpenModel.tokenize`."""
        self._check_vocabulary()
        request = {
            "content": text.encode("utf-8", "replace").decode(),  # lone surrogates have no JSON
            "add_special": add_special,
            "parse_special": parse_special,
        }
        return [int(token) for token in self._endpoint.post("/tokenize", request)["tokens"]]

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Text of token ids; see `OpenModel.detokenize`."""
        if not len(tokens):
            return ""
        ids = self._checked_ids(tokens)
        if special:
            return str(self._endpoint.post("/detokenize", {"tokens": ids})["content"])
        silent = self._silent_tokens()
        return str(self._endpoint.post("/detokenize", {"tokens": [i for i in ids if i not in silent]})["content"])

    def _silent_tokens(self) -> frozenset[int]:
        """Control and unknown tokens, which `/detokenize` spells: LLAMA_TOKEN_TYPE_CONTROL 3, UNKNOWN 2."""
        kinds = self._header.get(keys.VOCABULARY_TYPES) or []
        return frozenset(index for index, kind in enumerate(kinds) if kind in (2, 3))

    def generate(
        self,
        token_ids: Sequence[int],
        sampling: SamplingOptions | None = None,
        max_tokens: int = -1,
        *,
        context_shift: bool = False,
    ) -> Generator[GeneratedToken, None, None]:
        """Continue `token_ids`; see `OpenModel.generate`."""
        chosen = sampling or SamplingOptions()
        ids = self._checked_ids(token_ids)
        if len(ids) > self.n_ctx - 1:
            raise UsageError(f"prompt has {len(ids)} tokens, the context holds {self.n_ctx}")
        constraint = followed_constraint("xllamacpp", chosen, self._header)
        self.abort.clear()
        if max_tokens == 0:
            return
        left = self.n_ctx - len(ids)
        limit = max_tokens if context_shift else left if max_tokens < 0 else min(max_tokens, left)
        request = {
            "prompt": ids, "n_predict": limit, "n_keep": min(_KEPT_BEGINNING, len(ids) // 4), "cache_prompt": True,
            "stream": True, "return_progress": True, "return_tokens": True, **_sampling(chosen, constraint),
        }  # fmt: skip
        told = 0
        with closing(self._endpoint.events("/completion", request, self.abort)) as events:
            for event in events:
                if self.abort or event.get("stop"):
                    return
                if "prompt_progress" in event:
                    continue
                for _ in range(told + 1, int(event["tokens_predicted"])):  # those that ended inside a character
                    yield GeneratedToken(UNTOLD_TOKEN, "")
                told = int(event["tokens_predicted"])
                told_of = event.get("completion_probabilities") or ()
                chances = told_chances(told_of[-1]) if told_of else None
                yield GeneratedToken(_last(event.get("tokens")), str(event["content"]), chances)

    def embed(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The pooled embedding of `token_ids`; see `OpenModel.embed`."""
        if not self.options.embeddings:
            raise UsageError("embeddings: the model was opened without them")
        ids = self._checked_ids(token_ids)
        self._check_batch(len(ids))
        answer = self._endpoint.post("/embedding", {"content": ids, "embd_normalize": _AS_IT_IS})
        rows = np.asarray(answer[0]["embedding"], np.float32).reshape(-1, self.n_embd)
        mean: NDArray[np.float32] = rows.mean(axis=0, dtype=np.float32)
        return mean

    def prompt_seconds(self, token_ids: Sequence[int]) -> float:
        """Seconds that evaluating a prompt takes, as the engine's clock has it; nothing is kept from before."""
        return self._timings(self._checked_ids(token_ids), 1)["prompt_ms"] / 1000

    def generation_seconds(self, token_ids: Sequence[int]) -> float:
        """Seconds that generating as many tokens takes, the most probable ones, the end of a text ignored."""
        return self._timings(self._checked_ids(token_ids[:1]), len(token_ids))["predicted_ms"] / 1000

    def _timings(self, ids: list[int], count: int) -> dict[str, float]:
        request = {"prompt": ids, "n_predict": count, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        return dict(self._endpoint.post("/completion", request)["timings"])

    def relevance(self, query: str, document: str) -> float:
        """How well a document answers a query; see `OpenModel.relevance`."""
        if not self.options.reranking:
            raise UsageError("reranking: the model was opened without it")
        answer = self._endpoint.post("/rerank", {"query": query, "documents": [document]})
        return float(answer["results"][0]["relevance_score"])

    def _check_batch(self, count: int) -> None:
        given = self.options
        most = min(given.n_ubatch, given.n_batch, given.n_ctx or self.n_ctx)  # as llama.cpp clamps them
        if count > most:
            raise UsageError(f"text has {count} tokens, embeddings take at most n_ubatch = {most}")

    def _check_vocabulary(self) -> None:
        if not self._header.get(keys.TOKENS):
            raise ModelRuntimeError("the model has no vocabulary: it takes token ids only")

    def _checked_ids(self, token_ids: Sequence[int]) -> list[int]:
        ids = [int(token) for token in token_ids]
        if not ids:
            raise UsageError("prompt: expected at least one token, got shape (0,)")
        if len(ids) > self.n_ctx:
            raise UsageError(f"prompt has {len(ids)} tokens, the context holds {self.n_ctx}")
        if min(ids) < 0 or max(ids) >= self.n_vocab:
            raise UsageError(f"token ids: expected 0 to {self.n_vocab - 1}, got {min(ids)} to {max(ids)}")
        return ids


def _last(tokens: Any) -> int:
    return int(tokens[-1]) if tokens else UNTOLD_TOKEN


def _sampling(options: SamplingOptions, constraint: Constraint) -> dict[str, Any]:
    """Sampling options as a completion request spells them."""
    same = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "repeat_last_n",
            "frequency_penalty", "presence_penalty", "seed")  # fmt: skip
    request = {name: getattr(options, name) for name in same}
    if options.chances:
        request["n_probs"] = options.chances
    if constraint.grammar is not None:
        return {**request, "grammar": constraint.grammar}
    if constraint.json_schema is not None:
        return {**request, "json_schema": json.loads(constraint.json_schema)}
    return request
