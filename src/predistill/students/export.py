"""The student as a Hugging Face directory: config, safetensors, tokenizer, and a model card made from records."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import PreTrainedModel

from predistill.files import fsync_dir, write_atomic

__all__ = ["export_student"]


def export_student(model: PreTrainedModel, *, out: Path, tokenizer: Path, card: str) -> None:
    """Write `out` (config.json, model.safetensors, tokenizer files of directory `tokenizer`, README.md = `card`).

    The directory appears whole or not at all; an older one is replaced.
    """
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    for file in temporary.iterdir():
        file.chmod(0o644)  # the weights arrive as 0600, and a packaged model must be readable by all
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, temporary / name)
    write_atomic(temporary / "README.md", card.encode())
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)
    fsync_dir(out.parent)
