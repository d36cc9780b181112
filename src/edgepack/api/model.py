"""`edgepack.Model`: an opened model that completes, chats and embeds. Opening is left to `loading`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

from edgepack.api.embedding import embedding_prompt, embeddings_of
from edgepack.api.file_confidence import FileConfidence, with_chances
from edgepack.api.questions import checked_message, sampling_of
from edgepack.api.runtimes import Runtimes
from edgepack.edge.chat.completion import Completion, CompletionStream, complete
from edgepack.edge.chat.conversation import Conversation
from edgepack.edge.chat.sight import Sight
from edgepack.edge.confidence.choosing import Choice, pick
from edgepack.edge.install.projector import require_projector
from edgepack.edge.llama.image_file import read_picture
from edgepack.edge.llama.options import SamplingOptions
from edgepack.errors import UsageError
from edgepack.gguf import keys

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from edgepack.api.values import ImageFile
    from edgepack.edge.chat.template import ChatTemplate, JinjaTemplate, NamedTemplate
    from edgepack.edge.confidence.opening import Found
    from edgepack.edge.confidence.record import Fitted, Verdict
    from edgepack.edge.fit.opening import OpenWish
    from edgepack.edge.install.model_file import ModelFile
    from edgepack.edge.llama.engine import OpenModel
    from edgepack.edge.llama.interrupt import AbortFlag
    from edgepack.edge.llama.options import RuntimeOptions


class Model:
    """A model on this machine; not thread-safe. `edgepack.load` makes one.

    Tokens that were evaluated stay in the KV cache: of the next prompt only what differs is evaluated.

    Args:
        source: the GGUF and what belongs to it.
        wish: what the caller insists on.
        options: how it is opened for text.
        label: names it in messages.
        template: the chat template asked for; None is the model's own.
    """

    def __init__(
        self, source: ModelFile, wish: OpenWish, options: RuntimeOptions, label: str, template: str | None = None
    ) -> None:
        self.source = source
        self.label = label
        self._options = options
        self._wanted_template = template
        self._template: JinjaTemplate | NamedTemplate | None = None
        self._runtimes = Runtimes(source, wish, options, label)
        self._confidence = FileConfidence(source, options, template is None, label)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        self._runtimes.close()
        if self._template is not None:
            self._template.close()
        self._template = None

    @property
    def path(self) -> Path:
        """The GGUF that runs."""
        return self.source.path

    @property
    def ctx(self) -> int:
        """Tokens of context."""
        return self._options.n_ctx

    @property
    def runtime(self) -> OpenModel:
        """The engine's model, opened for text: tokens in, tokens out (and logits, where it is llama-cpp-python's)."""
        return self._runtimes.text()

    @property
    def load_seconds(self) -> float:
        """What opening has taken so far."""
        return self._runtimes.load_seconds

    @property
    def abort(self) -> AbortFlag:
        """`set()` from another thread, or from a signal handler, ends what is being opened or generated."""
        return self._runtimes.abort

    def open(self, *, embeddings: bool = False) -> None:
        """Let llama.cpp open the model now, for text, or for embeddings (scores, where it is a cross-encoder).

        Raises:
            ModelRuntimeError: llama.cpp refuses it.
        """
        if embeddings and self._runtimes.ranks:
            self._runtimes.ranker()
        elif embeddings:
            self._runtimes.embedder()
        else:
            self._runtimes.text()

    def confidence(self) -> Found:
        """How sure the file may be of its answers, as `edgepack.calibrate` measured it, and why not where it is not.

        All of the file is read once, to see that it is the one that was measured.
        """
        return self._confidence.found()

    def verdict(self, completion: Completion, *, chat: bool) -> Verdict:
        """How likely an answer is right, and whether to give it or to escalate.

        Args:
            completion: of `complete` or `chat`, with `sampling=SamplingOptions(chances=10)`.
            chat: whether it answers a chat.

        Raises:
            UsageError: the file says nothing of its confidence in such answers, or what it says is another file's;
                the completion was made without chances.
        """
        return self.calibration(chat=chat).judge(with_chances(completion))

    def choose(self, prompt: str, choices: Sequence[str]) -> Choice:
        """The likeliest of several endings of a text, with a verdict where the file's confidence in choices holds.

        Args:
            prompt: the text as it stands.
            choices: at least two, each after one space unless it brings its own.

        Raises:
            UsageError: fewer than two choices, longer than the context, or the engine is not llama-cpp-python.
        """
        found = pick(self.runtime, prompt, choices)
        record = self.confidence().record
        fitted = None if record is None else record.fitted.get("choice")
        verdict = None if fitted is None else fitted.verdict(found.seen, found.tokens)
        return Choice(found.index, found.seen.features.raw, verdict)

    def calibration(self, *, chat: bool) -> Fitted:
        """The calibration of chats, or of texts continued; raises UsageError where there is none that holds."""
        return self._confidence.fitted("chat" if chat else "text")

    @property
    def can_chat(self) -> bool:
        """Whether there is a chat template: the model's own, or one that was asked for."""
        return self._wanted_template is not None or self.source.template is not None

    def chat_template(self) -> ChatTemplate:
        """The chat template, tried on a question; needs no opened model.

        Raises:
            TemplateError: the model has none and none was asked for, or it is broken.
            UsageError: the name that was asked for is unknown.
        """
        if self._template is None:
            from edgepack.edge.chat.template import choose_template, special_tokens

            special = special_tokens(self.source.header)
            self._template = choose_template(self._wanted_template, self.source.template, special, self.label)
        return self._template

    @overload
    def complete(
        self, prompt: str, *, max_tokens: int = ..., temperature: float | None = ..., seed: int | None = ...,
        stop: Sequence[str] = ..., json_schema: str | None = ..., sampling: SamplingOptions | None = ...,
        context_shift: bool = ...,
        images: Sequence[ImageFile] = ..., stream: Literal[False] = ...,
    ) -> Completion: ...  # fmt: skip
    @overload
    def complete(
        self, prompt: str, *, max_tokens: int = ..., temperature: float | None = ..., seed: int | None = ...,
        stop: Sequence[str] = ..., json_schema: str | None = ..., sampling: SamplingOptions | None = ...,
        context_shift: bool = ...,
        images: Sequence[ImageFile] = ..., stream: Literal[True],
    ) -> CompletionStream: ...  # fmt: skip
    def complete(
        self,
        prompt: str,
        *,
        max_tokens: int = -1,
        temperature: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        json_schema: str | None = None,
        sampling: SamplingOptions | None = None,
        context_shift: bool = False,
        images: Sequence[ImageFile] = (),
        stream: bool = False,
    ) -> Completion | CompletionStream:
        """Continue a text.

        Args:
            prompt: the text as it stands; BOS is put in front where the vocabulary asks for it.
            max_tokens: not more than these; -1 is as many as the context holds.
            temperature: 0 takes the most probable token; by default 0.8, or `sampling`'s.
            seed: of the random draw; by default a new one each time.
            stop: texts that end the answer and are left out.
            json_schema: the answer is JSON of this schema (its text).
            sampling: everything else about how tokens are chosen.
            context_shift: cut the middle out of a prompt that is too long, and forget when the context is full.
            images: files (PNG, JPEG, GIF, BMP), or their bytes, that stand before the text.
            stream: give back an iterator over pieces of text, whose `result` is the completion once it has ended.

        Raises:
            UsageError: the prompt is longer than the context, the schema cannot be followed, a file is no image, or
                images are given to a model without a projector.
            ModelRuntimeError: llama.cpp fails.
        """
        chosen = sampling_of(sampling, temperature, seed, json_schema)
        asked: str | Sequence[int] = prompt
        if images:
            seen = self._sight(images, context_shift=context_shift)
            asked = seen.prompt(seen.markers + prompt)
        if stream:
            return CompletionStream(self.runtime, asked, chosen, max_tokens, stops=stop, context_shift=context_shift)
        return complete(self.runtime, asked, chosen, max_tokens, stops=stop, context_shift=context_shift)

    @overload
    def chat(
        self, messages: str | Sequence[Mapping[str, str]], *, max_tokens: int = ..., temperature: float | None = ...,
        seed: int | None = ..., stop: Sequence[str] = ..., json_schema: str | None = ...,
        sampling: SamplingOptions | None = ..., context_shift: bool = ...,
        images: Sequence[ImageFile] = ..., stream: Literal[False] = ...,
    ) -> Completion: ...  # fmt: skip
    @overload
    def chat(
        self, messages: str | Sequence[Mapping[str, str]], *, max_tokens: int = ..., temperature: float | None = ...,
        seed: int | None = ..., stop: Sequence[str] = ..., json_schema: str | None = ...,
        sampling: SamplingOptions | None = ..., context_shift: bool = ...,
        images: Sequence[ImageFile] = ..., stream: Literal[True],
    ) -> CompletionStream: ...  # fmt: skip
    def chat(
        self,
        messages: str | Sequence[Mapping[str, str]],
        *,
        max_tokens: int = -1,
        temperature: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        json_schema: str | None = None,
        sampling: SamplingOptions | None = None,
        context_shift: bool = False,
        images: Sequence[ImageFile] = (),
        stream: bool = False,
    ) -> Completion | CompletionStream:
        """Answer a conversation through the chat template.

        Args:
            messages: `{"role": "system" | "user" | "assistant", "content": text}` each, the question last; a text alone
                is one question.
            max_tokens: of the answer, as in `complete`, and so all that follow.
            temperature: 0 takes the most probable token.
            seed: of the random draw.
            stop: texts that end the answer, besides those of the template.
            json_schema: the answer is JSON of this schema.
            sampling: everything else about how tokens are chosen.
            context_shift: forget the oldest questions and answers when the context is full.
            images: files (PNG, JPEG, GIF, BMP), or their bytes, that the question is about.
            stream: give back an iterator over pieces of text.

        Raises:
            TemplateError: the model has no chat template, or it refuses the messages.
            UsageError: a message lacks a role or content, the conversation is longer than the context, or as in
                `complete`.
            ModelRuntimeError: llama.cpp fails.
        """
        chosen = sampling_of(sampling, temperature, seed, json_schema)
        conversation = self.conversation(chosen, stop=stop, context_shift=context_shift)
        turns = (
            [{"role": "user", "content": messages}] if isinstance(messages, str) else [*map(checked_message, messages)]
        )
        if images and not (turns and turns[-1]["role"] == "user"):
            raise UsageError("images: expected a question of the user as the last message")
        if turns and turns[0]["role"] == "system":
            conversation.system = turns.pop(0)["content"]
        conversation.turns = turns
        prompt = self._prompt(conversation, images)
        stops = conversation.all_stops
        if stream:
            return CompletionStream(self.runtime, prompt, chosen, max_tokens, stops=stops)
        return complete(self.runtime, prompt, chosen, max_tokens, stops=stops)

    def _prompt(self, conversation: Conversation, images: Sequence[ImageFile]) -> Sequence[int]:
        """A conversation's prompt; images stand before its last question."""
        if not images:
            return conversation.fitting_prompt()
        seen = self._sight(images, context_shift=conversation.context_shift)
        conversation.turns[-1]["content"] = seen.markers + conversation.turns[-1]["content"]
        text, add_special = conversation.text(conversation.messages)
        return seen.prompt(text, add_special=add_special, parse_special=True)

    def check_sight(self, images: Sequence[ImageFile]) -> None:
        """Refuse images that cannot be looked at, before anything is opened.

        Raises:
            UsageError: a file is no image, or the model has no projector.
        """
        require_projector(self.source, self.source.projector, self.label)
        for image in images:
            read_picture(image)

    def _sight(self, images: Sequence[ImageFile], *, context_shift: bool) -> Sight:
        """The images, ready to stand in a prompt."""
        if context_shift:
            raise UsageError("context shift: images cannot be forgotten in part: expected none of the two")
        projector = require_projector(self.source, self.source.projector, self.label)
        pictures = [read_picture(image) for image in images]
        return Sight(self._runtimes.eyes(projector), pictures)

    def conversation(
        self,
        sampling: SamplingOptions | None = None,
        *,
        system: str = "",
        max_tokens: int = -1,
        stop: Sequence[str] = (),
        context_shift: bool = False,
    ) -> Conversation:
        """A conversation that keeps its turns: `answer(question)` gives pieces of text.

        Args:
            sampling: how tokens are chosen.
            system: the system message; empty for none.
            max_tokens: of an answer; -1 is as many as the context holds.
            stop: texts that end an answer, besides those of the template.
            context_shift: forget the oldest turns when the context is full, instead of refusing.

        Raises:
            TemplateError: the model has no chat template, or it is broken.
        """
        chosen = sampling or SamplingOptions()
        return Conversation(self.runtime, self.chat_template(), chosen, system, max_tokens, context_shift, stop)

    def embed(
        self, texts: str | Sequence[str], *, normalize: bool | None = None, prompt_name: str | None = None
    ) -> NDArray[np.float32]:
        """Embeddings of texts: pooled as the model was trained, else the mean over a text's tokens.

        Args:
            texts: one text or several.
            normalize: scale each embedding to length 1; None as the model's own last module does.
            prompt_name: which of the model's prompts is put before texts; None for the one that it has as default.

        Returns:
            float32 [texts, width].

        Raises:
            UsageError: a text has no token, or more than fit into a batch; no prompt of that name.
            ModelRuntimeError: llama.cpp fails.
        """
        header = self.source.header
        before = embedding_prompt(header, prompt_name)
        scaled = header.get(keys.EMBEDDING_NORMALIZE, False) is True if normalize is None else normalize
        asked = [texts] if isinstance(texts, str) else texts
        return embeddings_of(self._runtimes.embedder(), [before + text for text in asked], scaled=scaled)

    def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        """How well each document answers a query, as a cross-encoder sees it.

        Args:
            query: the question.
            documents: texts, read one by one.

        Returns:
            One score a document, in their order; the larger the better, any real number.

        Raises:
            UnsupportedModelError: the model is no cross-encoder.
            UsageError: query and document are longer than a batch.
            ModelRuntimeError: llama.cpp fails.
        """
        model = self._runtimes.ranker()
        return [model.relevance(query, document) for document in documents]
