"""From examples to token ids: prompts as the policy reads them, alone or with given completions."""

from __future__ import annotations

import torch

from bakeoff.batch import Example, Prompts, Sequences
from bakeoff.errors import UserError
from bakeoff.model.policy import Policy


def render(policy: Policy, example: Example, shots: list[Example]) -> str:
    """Text of a prompt: the turns of a chat, or one line per solved example and then the question."""
    if not policy.chat:
        return "".join(f"{shot.prompt}{shot.answer}\n" for shot in shots) + example.prompt
    turns = [(shot.prompt, str(shot.answer)) for shot in shots]
    messages = [{"role": "system", "content": policy.system}] if policy.system else []
    messages += [{"role": r, "content": c} for q, a in turns for r, c in (("user", q), ("assistant", a))]
    messages.append({"role": "user", "content": example.prompt})
    return str(policy.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def encode(policy: Policy, examples: list[Example], shots: list[Example]) -> Prompts:
    """Prompts on the policy's device, left-padded; raises UserError for a character outside of the vocabulary."""
    tokenizer = policy.tokenizer
    texts = [render(policy, example, shots) for example in examples]
    rows = tokenizer(texts, add_special_tokens=not policy.chat)["input_ids"]
    for text, row in zip(texts, rows, strict=True):
        if tokenizer.unk_token_id is None and tokenizer.pad_token_id in row and tokenizer.pad_token not in text:
            missing = next(c for c in text if c not in tokenizer.get_vocab())
            raise UserError(
                f"task: the prompt {text[:40]!r} has the character {missing!r}, but model.characters does not; "
                "choose a task whose prompts this model can read, or another model."
            )
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    attention = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        attention[index, width - len(row) :] = True
    return Prompts(examples, texts, ids.to(policy.device), attention.to(policy.device))


def encode_with_completions(
    policy: Policy, examples: list[Example], texts: list[str], shots: list[Example]
) -> Sequences:
    """Prompts with given completions, each with EOS appended; consecutive examples may be equal."""
    prompts = encode(policy, examples, shots)
    eos = policy.tokenizer.eos_token_id
    rows = [policy.tokenizer(text, add_special_tokens=False)["input_ids"] + [eos] for text in texts]
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [eos] * (width - len(row)) for row in rows], device=policy.device)
    lengths = torch.tensor([len(row) for row in rows], device=policy.device)
    mask = torch.arange(width, device=policy.device) < lengths[:, None]
    return Sequences(torch.cat([prompts.ids, ids], 1), torch.cat([prompts.attention, mask], 1), mask)
