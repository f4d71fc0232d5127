"""The text of a corpus' held-out rows, for models that have other words than the corpus: they read the same text in
their own words, and bits a byte of it compare them all."""

# B rows of a batch  T position  D width  V vocabulary
from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from predistill.corpus import Corpus
from predistill.corpus.tokenizer import load_tokenizer
from predistill.students.forward import head_of, hidden_states

__all__ = ["heldout_texts", "measure_respelled", "text_bytes"]

CHUNK_POSITIONS = 1024
CUT = "\ufffd"  # what a decoder writes for the beginning of a character that has no end


def heldout_texts(corpus: Corpus, *, rows: int) -> list[str]:
    """The documents whose tokens are the labels of the first `rows` rows of a split; the last may be a beginning, and
    of a character that is cut there nothing is left."""
    stop = rows * corpus.row_len + 1
    ids, closes = corpus.stream(1, stop), corpus.closes(1, stop)
    tokenizer = load_tokenizer(corpus.tokenizer_path).tokenizer
    begin, texts = 0, []
    for end in [*np.flatnonzero(closes).tolist(), len(ids)]:
        texts.append(tokenizer.decode(ids[begin:end].tolist(), skip_special_tokens=False))
        begin = end + 1
    texts[-1] = texts[-1].rstrip(CUT)
    return texts


def text_bytes(texts: list[str]) -> int:
    """UTF-8 bytes of the documents; what closes them has none."""
    return sum(len(text.encode()) for text in texts)


@torch.inference_mode()
def measure_respelled(
    model: PreTrainedModel,
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    end_id: int,
    row_len: int,
    document_mask: bool = False,
    batch_rows: int = 16,
) -> tuple[float, int]:
    """Nats of all tokens of the documents in the model's own words, and how many tokens those are.

    As in a corpus: `end_id` opens the stream and stands between documents, where it counts as any label does; rows take
    `row_len` tokens in and overlap by one. Nothing is dropped: the last row is shorter.
    """
    stream = [end_id]
    for number, text in enumerate(texts):
        stream += [end_id] if number else []
        stream += tokenizer.encode(text, add_special_tokens=False)
    rows = [stream[start : start + row_len + 1] for start in range(0, len(stream) - 1, row_len)]
    head, nats = head_of(model), 0.0
    whole = len(rows) - (len(rows[-1]) <= row_len) if rows else 0
    batches = [rows[start : min(start + batch_rows, whole)] for start in range(0, whole, batch_rows)]
    for batch in [*batches, *([row] for row in rows[whole:])]:
        ids_BT1 = torch.tensor(batch, device=model.device)
        hidden_BTD = hidden_states(model, ids_BT1[:, :-1], end_id=end_id if document_mask else None)
        for hidden_ND, label_N in zip(
            hidden_BTD.flatten(0, 1).split(CHUNK_POSITIONS),
            ids_BT1[:, 1:].flatten().split(CHUNK_POSITIONS),
            strict=True,
        ):
            logprob_NV = head.logits(hidden_ND).log_softmax(dim=-1)
            nats -= float(logprob_NV.gather(1, label_N[:, None]).double().sum())
    return nats, len(stream) - 1
