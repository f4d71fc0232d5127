"""predistill generate: see a student write."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from predistill.errors import RunError
from predistill.stages.inputs import pick_device
from predistill.students.build import load_model, load_tokenizer

__all__ = ["continue_text", "exported_model", "generate"]


def generate(
    run_or_model: str | Path,
    prompt: str = "",
    *,
    tokens: int = 128,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> str:
    """The continuation of `prompt` (empty: a new document) by a finished run's student or a model directory."""
    path = exported_model(run_or_model)
    model = load_model(path, device=pick_device()).eval()
    return continue_text(
        model, load_tokenizer(path), prompt, tokens=tokens, temperature=temperature, top_p=top_p, seed=seed
    )


def continue_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    tokens: int = 128,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> str:
    """Sample up to `tokens` more; temperature 0 takes the likeliest word each time. One seed, one text."""
    end_id = model.config.eos_token_id
    ids = [end_id, *tokenizer.encode(prompt, add_special_tokens=False)]
    context = int(model.config.max_position_embeddings)
    room = max(1, min(tokens, context - len(ids)))
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {"do_sample": False}
    )
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        input_1T = torch.tensor([ids[-context + 1 :]], device=model.device)
        output_1T = model.generate(  # type: ignore[operator]  # Transformers mixes it in
            input_1T, attention_mask=torch.ones_like(input_1T), max_new_tokens=room, pad_token_id=end_id, **sampling
        )
    written = output_1T[0, input_1T.shape[1] :].tolist()
    return str(tokenizer.decode([i for i in written if i != end_id]))


def exported_model(run_or_model: str | Path) -> Path:
    """The model directory of a finished run, or the directory or .gguf file itself."""
    path = Path(run_or_model)
    if path.suffix == ".gguf" and path.is_file():
        return path
    model = path / "model" if (path / "recipe.yaml").exists() else path
    if not (model / "config.json").exists():
        raise RunError(
            f"{path}: no exported model here. Name a finished run, a directory with config.json, or a .gguf file."
        )
    return model
