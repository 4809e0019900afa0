"""Between text and token ids: prompts as the policy reads them, given completions as it would end them, and back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from functools import partial

import torch
from transformers import PreTrainedTokenizerBase

from bakeoff.batch import Example, Prompts, Sequences
from bakeoff.errors import UserError
from bakeoff.model.policy import Policy
from bakeoff.task.task import Task, as_read
from bakeoff.task.template import draws

COMPARED = 256  # prompts whose tokens are compared: a template that drops what differs shows it in a few
TODAY = date(2024, 7, 26)  # as Llama 3's templates have it where there is no clock


def render(policy: Policy, example: Example, shots: list[Example]) -> str:
    """Text of a prompt: the turns of a chat, or one line per solved example and then the question.

    The example's own system prompt stands before both, and in a chat instead of model.system.
    """
    if not policy.chat:
        system, solved = (f"{text}\n\n" for text in system_of(example)), (f"{s.prompt}{s.answer}\n" for s in shots)
        return "".join([*system, *solved, example.prompt])
    return chat_text(policy, chat_of(policy, example, shots), add_generation_prompt=True)


def system_of(example: Example) -> list[str]:
    """The example's own system prompts; empty where it has none."""
    return [message["content"] for message in example.messages if message["role"] == "system"]


def chat_of(policy: Policy, example: Example, shots: list[Example]) -> list[dict[str, str]]:
    """The messages of a prompt: a system prompt, the solved examples as turns, and the example's own."""
    system = system_of(example) or [policy.system] * bool(policy.system)
    messages = [{"role": "system", "content": text} for text in system]
    turns = [(shot.prompt, str(shot.answer)) for shot in shots]
    messages += [{"role": r, "content": c} for q, a in turns for r, c in (("user", q), ("assistant", a))]
    return messages + (
        [each for each in example.messages if each["role"] != "system"] or [{"role": "user", "content": example.prompt}]
    )


def chat_text(policy: Policy, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
    """The messages as the chat template writes them; raises UserError where the template refuses them."""
    template = policy.tokenizer.get_chat_template()
    if drawing := draws(template):
        raise UserError(
            f"model.chat is true, but '{drawing}' in the chat template draws at random, so that prompts would differ "
            "from run to run; set model.chat=false."
        )
    try:
        text = policy.tokenizer.apply_chat_template(
            messages,
            chat_template=undated(template),
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
    except Exception as error:  # a template is a program of the model's authors
        said = messages[0]["content"] if messages[0]["role"] == "system" else ""
        key = "model.system" if said == policy.system else "task.system"
        system = f"{key} is '{said}', and " if said else "but "
        remedy = f"leave {key} empty, as templates without a system role need it, or " if said else ""
        raise UserError(
            f"model.chat is true, {system}the chat template refuses the messages ({error}); {remedy}set "
            "model.chat=false."
        ) from error
    return str(text)


def undated(template: str) -> str:
    """A chat template that writes the same day in every run: today's would change prompts and starts from day to day.

    transformers lets a template call strftime_now, and hands it no function but its own, so it gets a macro.
    """
    if "strftime_now" not in template:
        return template
    directives = ("-d", "-m", *"aAbBdmyYjHIMSpeFDxcuwUWV")
    written = "".join(f"|replace('%{each}', '{TODAY.strftime(f'%{each}')}')" for each in directives)
    return f"{{% macro strftime_now(format) -%}}{{{{ format{written} }}}}{{%- endmacro +%}}{template}"


def require_distinct(policy: Policy, examples: list[Example], shots: list[Example]) -> None:
    """Raises UserError where prompts that differ are equal tokens, such as those of a template that drops a message.

    A role is tried in one example of each combination of roles. Tokens are compared in `COMPARED` examples, evenly
    from all of them; texts that differ in case or white space alone may be equal to a tokenizer.
    """
    if policy.chat:
        for example in {frozenset(each["role"] for each in example.messages): example for example in examples}.values():
            require_roles(policy, example, shots)
    compared = examples[:: -(-len(examples) // COMPARED) or 1]
    rows = text_ids(policy, [render(policy, example, shots) for example in compared], "prompt")
    seen: dict[tuple[int, ...], str] = {}
    for example, row in zip(compared, rows, strict=True):
        text = "\n".join([*system_of(example), example.prompt])
        other = seen.setdefault(tuple(row), text)
        if as_read(other).casefold() != as_read(text).casefold():
            differ = (at for at, (one, two) in enumerate(zip(other, text, strict=False)) if one != two)
            start = max(0, next(differ, min(len(other), len(text))) - 20)  # the part in which they differ is shown
            subject = "model.chat is true, but the chat template makes" if policy.chat else "task: the tokenizer makes"
            remedy = "set model.chat=false, or choose another model" if policy.chat else "choose another model"
            raise UserError(
                f"{subject} the same tokens of the prompts {other[start : start + 60]!r} and "
                f"{text[start : start + 60]!r}; {remedy}."
            )


def require_roles(policy: Policy, example: Example, shots: list[Example]) -> None:
    """Raises UserError where other messages of a role leave the text of the chat as it is."""
    messages = chat_of(policy, example, shots)
    text = chat_text(policy, messages, add_generation_prompt=True)
    for role in dict.fromkeys(each["role"] for each in messages):
        # the change is around the content, because a template may drop a part of it, such as the reasoning
        others = [each | {"content": f"x{each['content']}x"} if each["role"] == role else each for each in messages]
        if chat_text(policy, others, add_generation_prompt=True) == text:
            remedy = "choose another model" if role in ("user", "assistant") else "rename that role in the task's data"
            if role == "system":
                remedy = f"leave {'task' if system_of(example) else 'model'}.system empty"
            raise UserError(
                f"model.chat is true, but the chat template leaves out messages of the role '{role}'; {remedy}, or set "
                "model.chat=false."
            )


def leave_out_long_prompts(policy: Policy, task: Task) -> None:
    """Drops the prompts of a task that have more tokens than it allows, as the policy reads them."""
    bound = task.max_prompt_tokens
    if bound:
        known, shots = task.known_examples(), task.shot_examples()
        start = 0 if policy.chat else len(start_ids(policy.tokenizer))
        rows = text_ids(policy, [render(policy, example, shots) for example in known], "prompt")
        tokens = {as_read(each.prompt): start + len(row) for each, row in zip(known, rows, strict=True)}
        task.leave_out({prompt: number for prompt, number in tokens.items() if number > bound})


def encode(policy: Policy, examples: list[Example], shots: list[Example]) -> Prompts:
    """Prompts on the policy's device, left-padded; raises UserError for a text that the vocabulary cannot write."""
    texts = [render(policy, example, shots) for example in examples]
    start = [] if policy.chat else start_ids(policy.tokenizer)
    rows = [start + ids for ids in text_ids(policy, texts, "prompt")]
    if [] in rows:
        raise UserError("task: a prompt has an empty text, and the tokenizer adds no start token; give it a text.")
    width = max(len(row) for row in rows)
    pad = policy.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    attention = torch.arange(width) >= torch.tensor([[width - len(row)] for row in rows])
    return Prompts(examples, texts, ids.to(policy.device), attention.to(policy.device))


def encode_with_completions(
    policy: Policy, examples: list[Example], texts: list[str], shots: list[Example]
) -> Sequences:
    """Prompts with given completions, each ended as the policy ends one; consecutive examples may be equal."""
    prompts = encode(policy, examples, shots)
    end = end_id(policy)
    rows = [[*ids, end] for ids in text_ids(policy, texts, "completion")]
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [end] * (width - len(row)) for row in rows], device=policy.device)
    lengths = torch.tensor([len(row) for row in rows], device=policy.device)
    mask = torch.arange(width, device=policy.device) < lengths[:, None]
    return Sequences(torch.cat([prompts.ids, ids], 1), torch.cat([prompts.attention, mask], 1), mask)


def text_ids(policy: Policy, texts: list[str], kind: str) -> list[list[int]]:
    """Token ids of each text alone; raises UserError, which names the kind of text, for an unknown character."""
    tokenizer = policy.tokenizer
    rows: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    # a tokenizer of characters writes its padding where it has no token
    unknown, token = tokenizer.pad_token_id, tokenizer.pad_token
    if tokenizer.unk_token_id is not None:
        unknown, token = tokenizer.unk_token_id, tokenizer.unk_token
    for text, row in zip(texts, rows, strict=True):
        if unknown in row and token not in text:
            each = (c for c in text if unknown in tokenizer(c, add_special_tokens=False)["input_ids"])
            raise UserError(
                f"task: the {kind} {text[:40]!r} has the character {next(each, text)!r}, for which the model has no "
                "token (model.characters lists those of a model from scratch); choose another task or another model."
            )
    return rows


def start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that the tokenizer puts before a text. What it puts after one, as some do with EOS, is none of them."""
    alone = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids: list[int] = tokenizer("a")["input_ids"]
    return next((ids[:at] for at in range(len(ids)) if ids[at : at + len(alone)] == alone), [])


def end_id(policy: Policy) -> int:
    """The id that ends a completion: in a chat the one that the template puts after an assistant's turn."""
    ends = policy.eos_ids
    if policy.chat:
        messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        after = chat_text(policy, messages, add_generation_prompt=False).rpartition("answer")[2]
        ids = policy.tokenizer(after, add_special_tokens=False)["input_ids"]
        ends = [each for each in ids if each in ends] or ends
    own: int | None = policy.tokenizer.eos_token_id
    return ends[0] if policy.chat or own is None else own


def decoder(policy: Policy) -> Callable[[list[int]], str]:
    """Token ids → their text without padding, start and end; other special tokens, as of reasoning, are text."""
    tokenizer = policy.tokenizer
    return partial(_decode, tokenizer, {tokenizer.pad_token_id, tokenizer.bos_token_id, *policy.eos_ids})


def _decode(tokenizer: PreTrainedTokenizerBase, dropped: set[int], ids: list[int]) -> str:
    return str(tokenizer.decode([each for each in ids if each not in dropped]))


def positions(policy: Policy) -> int | None:
    """Number of tokens that a sequence may have, none where the architecture has no bound.

    Rotary embeddings that change with the length seen give one sequence other log-probs in passes of other lengths:
    they are only used up to the length from which on they change.
    """
    config = policy.network.config.get_text_config()
    longest: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    for each in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if each.get("rope_type") == "longrope":
            longest = each.get("original_max_position_embeddings") or longest
    return longest


def require_room(policy: Policy, prompts: Prompts, max_tokens: int) -> None:
    """Raises UserError where the longest prompt and a completion are together longer than the model's positions."""
    bound, width = positions(policy), prompts.ids.shape[1]
    if bound is not None and width + max_tokens > bound:
        raise UserError(
            f"task.max_new_tokens is {max_tokens}, and a prompt has {width} tokens, but the model has {bound} "
            "positions; lower task.max_new_tokens, shorten the prompts (task=dataset leaves out those longer than "
            "task.max_prompt_tokens), or choose a model with more positions."
        )
