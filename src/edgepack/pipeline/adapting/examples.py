"""Passages and pairs as token ids: what is read of them, and what is learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgepack.documents.passages import sentences

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgepack.documents.pairs import Pair
    from edgepack.documents.passages import Passage

Example = tuple["Sequence[int]", int]
_LEAST = 2  # tokens of an example


class Renderer:
    """Writes examples as one tokenizer spells them.

    Args:
        tokenizer: transformers', of the model.
        length: tokens of an example at most; what is longer comes in several.
    """

    def __init__(self, tokenizer: Any, length: int) -> None:
        self._tokenizer, self._length = tokenizer, length
        marked = tokenizer("a", verbose=False)["input_ids"]
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._begin = [begin] if begin is not None and marked[:1] == [begin] else []
        self._end = [] if end is None else [end]
        self._chats = bool(getattr(tokenizer, "chat_template", None))

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    def passage(self, passage: Passage) -> Iterator[Example]:
        """A passage below its title, then each of its sentences behind the title; all of it is learnt.

        A sentence alone is what a question reaches: what stood before it in the passage is not asked along.
        """
        yield from self._cut([*self._begin, *self._ids(passage.written), *self._end], 1)
        every = [each for paragraph in passage.text.split("\n\n") for each in sentences(paragraph)]
        for sentence in every if len(every) > 1 else ():
            yield from self._cut([*self._begin, *self._ids(f"{passage.title}: {sentence}"), *self._end], 1)

    def pair(self, pair: Pair) -> Iterator[Example]:
        """A question and its answer, of which the answer is learnt; with a chat template a second time through it."""
        before = [*self._begin, *self._ids(f"Question: {pair.question}\nAnswer:")]
        yield from self._cut([*before, *self._ids(f" {pair.answer}"), *self._end], len(before))
        if self._chats:
            yield from self._chat(pair)

    def _chat(self, pair: Pair) -> Iterator[Example]:
        asked = [{"role": "user", "content": pair.question}]
        answered = [*asked, {"role": "assistant", "content": pair.answer}]
        apply = self._tokenizer.apply_chat_template
        prompt = apply(asked, tokenize=False, add_generation_prompt=True)
        whole = apply(answered, tokenize=False)
        if not whole.startswith(prompt):  # a template that writes an answer otherwise than it asks for one
            return
        before = self._ids(prompt)
        yield from self._cut([*before, *self._ids(whole[len(prompt) :])], len(before))

    def _cut(self, ids: list[int], before: int) -> Iterator[Example]:
        """As it is, or in parts of the greatest length; a part of which nothing is learnt is left out."""
        for start in range(0, len(ids), self._length):
            part = ids[start : start + self._length]
            read = max(0, before - start)
            if len(part) >= _LEAST and read < len(part):
                yield part, read
