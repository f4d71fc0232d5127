"""What a corpus is prepared from: texts, or conversations in the words of a chat template."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from predistill.corpus.chat import TEMPLATE_FILE, ChatTemplate, chat_template
from predistill.corpus.conversations import Conversation, conversations
from predistill.corpus.marks import MARKED_DTYPE, ids_and_marks
from predistill.corpus.reader import FORMAT, INSTRUCT_FORMAT
from predistill.corpus.rows import id_dtype_of
from predistill.corpus.sources import Documents
from predistill.corpus.text import texts
from predistill.corpus.tokenizer import END_TOKEN, CorpusTokenizer, trained_config
from predistill.corpus.workers import tokenised, tokenised_conversations
from predistill.errors import CorpusError
from predistill.files import write_atomic

__all__ = ["Conversations", "Material", "OnProgress", "Texts", "Tokenised"]

Document = TypeVar("Document")
OnProgress = Callable[[int, int, str], None]


class Tokenised(NamedTuple):
    """A document's `text`; its token ids (of conversations: as `marked_ids`); the text that decides its split; and the
    numbers of the task files it shares words with."""

    text: bytes
    ids: bytes
    decides: bytes
    files_met: list[int]


class Material(Protocol):
    """Documents on their way to tokens; `format` and `facts` are what the manifest says of their kind."""

    @property
    def documents(self) -> Documents[Any]: ...
    @property
    def format(self) -> str: ...
    @property
    def facts(self) -> dict[str, Any]: ...

    def sample(self, progress: OnProgress) -> Iterator[bytes]:
        """Texts that a tokenizer may be trained on."""

    def save(self, tokenizer: CorpusTokenizer, folder: Path) -> None:
        """Write the tokenizer, and what belongs to it."""

    def tokenised(
        self,
        tokenizer: CorpusTokenizer,
        folder: Path,
        *,
        task_grams: Path | None,
        processes: int,
        progress: OnProgress,
    ) -> Generator[Tokenised, None, None]:
        """Each document's tokens, by the tokenizer that was saved to `folder`; compared with the `TaskGrams` that was
        saved to `task_grams`, if any. Close it, and the processes end."""


@dataclass(frozen=True)
class Texts:
    """Documents of plain text."""

    documents: Documents[bytes]
    text_field: str
    format: str = FORMAT

    @classmethod
    def of(cls, sources: str | Path | Sequence[str | Path], *, text_field: str, skip_bad: bool) -> Texts:
        return cls(texts(sources, text_field=text_field, skip_bad=skip_bad), text_field)

    @property
    def facts(self) -> dict[str, Any]:
        return {"text_field": self.text_field}

    def sample(self, progress: OnProgress) -> Iterator[bytes]:
        return _watched(self.documents, "sample", progress)

    def save(self, tokenizer: CorpusTokenizer, folder: Path) -> None:
        tokenizer.save(folder)

    def tokenised(
        self,
        tokenizer: CorpusTokenizer,
        folder: Path,
        *,
        task_grams: Path | None,
        processes: int,
        progress: OnProgress,
    ) -> Generator[Tokenised, None, None]:
        answers = tokenised(
            _watched(self.documents, "tokenise", progress),
            tokenizer_path=folder / "tokenizer.json",
            id_dtype=id_dtype_of(tokenizer.vocab_size),
            processes=processes,
            task_grams=task_grams,
        )
        with closing(answers):
            for text, ids, files_met in answers:
                yield Tokenised(text, ids, text, files_met)


@dataclass(frozen=True)
class Conversations:
    """Conversations, of which the responses are counted."""

    documents: Documents[Conversation]
    template: ChatTemplate
    document_mask: bool
    format: str = INSTRUCT_FORMAT

    @classmethod
    def of(
        cls,
        sources: str | Path | Sequence[str | Path],
        *,
        template: str | Path | None,
        tokenizer_path: str | Path | None,
        tokenizer: CorpusTokenizer | None,
        document_mask: bool,
        skip_bad: bool,
    ) -> Conversations:
        """`template`: a file; None: the one of the tokenizer's directory, or the plain one. `tokenizer`: None where it
        is yet to be trained."""
        config = trained_config() if tokenizer is None else tokenizer.config
        special = [END_TOKEN] if tokenizer is None else tokenizer.special_tokens
        chosen = chat_template(template, tokenizer=tokenizer_path, config=config)
        documents = conversations(sources, chosen, special_tokens=special, skip_bad=skip_bad)
        return cls(documents, chosen, document_mask)

    @property
    def facts(self) -> dict[str, Any]:
        return {"chat_template": self.template.facts}

    def sample(self, progress: OnProgress) -> Iterator[bytes]:
        return (conversation.plain for conversation in _watched(self.documents, "sample", progress))

    def save(self, tokenizer: CorpusTokenizer, folder: Path) -> None:
        """The template goes beside the tokenizer, where Transformers looks for it first."""
        config = {name: value for name, value in tokenizer.config.items() if name != "chat_template"}
        replace(tokenizer, config=config).save(folder)
        write_atomic(folder / TEMPLATE_FILE, self.template.text.encode())

    def tokenised(
        self,
        tokenizer: CorpusTokenizer,
        folder: Path,
        *,
        task_grams: Path | None,
        processes: int,
        progress: OnProgress,
    ) -> Generator[Tokenised, None, None]:
        answers = tokenised_conversations(
            _watched(self.documents, "tokenise", progress),
            tokenizer_path=folder / "tokenizer.json",
            end_id=tokenizer.end_id,
            special_tokens_are_text=self.template.is_plain,
            processes=processes,
            task_grams=task_grams,
        )
        with closing(answers):
            for conversation, ids, files_met in answers:
                if self.document_mask:
                    _check_one_end(ids, tokenizer)
                yield Tokenised(conversation.text.encode(), ids, conversation.plain, files_met)


def _watched(documents: Documents[Document], phase: str, progress: OnProgress) -> Iterator[Document]:
    for document in documents:
        progress(documents.done_bytes, documents.total_bytes, phase)
        yield document
    progress(documents.done_bytes, documents.total_bytes, phase)


def _check_one_end(marked: bytes, tokenizer: CorpusTokenizer) -> None:
    ids, _ = ids_and_marks(np.frombuffer(marked, MARKED_DTYPE), MARKED_DTYPE)
    if np.count_nonzero(ids == tokenizer.end_id) > 1:
        raise CorpusError(
            f'--document-mask: the chat template writes the end token "{tokenizer.end_token}" within a conversation, '
            "where attention would stop. Leave --document-mask out, or name another token as eos_token in the "
            "tokenizer_config.json beside the tokenizer."
        )
