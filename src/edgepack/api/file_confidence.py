"""How sure an opened file may be of its answers: the record that belongs to it, and why not where there is none.

Measuring it is `edgepack.calibrate`'s, judging an answer `edge.confidence`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgepack.edge.confidence.opening import Found, find_record
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from edgepack.edge.chat.completion import Completion
    from edgepack.edge.confidence.record import Fitted, Form
    from edgepack.edge.install.model_file import ModelFile
    from edgepack.edge.llama.chances import TokenChances
    from edgepack.edge.llama.options import RuntimeOptions

_CALIBRATE = "measure it with edgepack calibrate"


class FileConfidence:
    """Of one file as it is opened; all of it is read once, when it is first asked for.

    Args:
        source: the GGUF and what belongs to it.
        options: how it is opened.
        own_template: whether it chats by its own template.
        label: names it in messages.
    """

    def __init__(self, source: ModelFile, options: RuntimeOptions, own_template: bool, label: str) -> None:
        self._source, self._options, self._own_template, self._label = source, options, own_template, label
        self._found: Found | None = None

    def found(self) -> Found:
        """The record, or why there is none that holds."""
        if self._found is None:
            self._found = find_record(
                self._source.path, self._source.header, self._options.adapters, own_template=self._own_template
            )
        return self._found

    def fitted(self, form: Form) -> Fitted:
        """The calibration of one form of answers; raises UsageError where there is none that holds."""
        found = self.found()
        if found.problem:
            raise UsageError(f"{self._label}: {found.problem}")
        if found.record is None:
            raise UsageError(f"{self._label}: it says nothing of its confidence: {_CALIBRATE}")
        if form in found.record.fitted:
            return found.record.fitted[form]
        stated = " and ".join(found.record.fitted)
        how = {"chat": "with --chat", "text": "without --chat", "choice": "with questions that have choices"}[form]
        raise UsageError(f"{self._label}: its confidence is of {stated}, expected {form}: {_CALIBRATE}, {how}")


def with_chances(completion: Completion) -> tuple[TokenChances, ...]:
    """How likely a completion's tokens were; raises UsageError where it was made without."""
    if completion.text and not completion.chances:
        raise UsageError("verdict: expected a completion of SamplingOptions(chances=10), got one without")
    return completion.chances
