"""Conversations: the task's environment answers the policy's turns, and the turns become one completion."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bakeoff.batch import Example, Prompts, Rollout, Sequences
from bakeoff.errors import UserError
from bakeoff.model.encode import chat_text, encode, end_id, positions, text_ids
from bakeoff.model.policy import Policy
from bakeoff.nearest import name_of
from bakeoff.rows import columns_first, concatenate, map_tensors
from bakeoff.task import TASKS
from bakeoff.task.task import CONVERSATION, Message, Task

Replies = Callable[[list[tuple[list[Message], Example]]], list[str | None]]
TURN = "⟦turn⟧"  # stands for a turn in a template's text


@dataclass
class Said:
    """The tokens of one turn or several, of policy or environment, [S, N] each.

    ids        int64
    shown      bool, false where a row says nothing
    mask       bool, true on the tokens that the policy wrote
    logprobs   of these tokens, zero elsewhere; entropy alike, none where the engine does not compute it
    """

    ids: Tensor
    shown: Tensor
    mask: Tensor
    logprobs: Tensor
    entropy: Tensor | None

    @staticmethod
    def beside(parts: list[Said]) -> Said:
        """The parts one after another."""
        fields: Any = zip(*(vars(part).values() for part in parts), strict=True)
        joined: list[Any] = [None if each[0] is None else torch.cat(each, 1) for each in fields]
        return Said(*joined)

    def columns(self, chosen: Tensor) -> Said:
        """The chosen columns [S, M] of each row."""
        found: Said = map_tensors(lambda x: x.gather(1, chosen), self)
        return found


def converse(
    policy: Policy, task: Task, first: Rollout, take_turn: Callable[[int, Prompts], Rollout], replies: Replies
) -> Rollout:
    """The rollout whose first turns are those of `first`, each conversation held to its end.

    `take_turn(number, prompts)` is one more turn of the policy, one completion of each of these prompts. It is asked
    for every row as long as one conversation continues, so that what a row draws depends on no other; the turns of rows
    that have ended are dropped. A conversation ends where the environment says so, after `most_turns` turns, after a
    turn without an end, and where the model has no positions for a reply and one more turn.
    """
    takes_part, ended, turn = torch.ones_like(first.ended), first.ended, first
    parts = [by_policy(first, takes_part)]
    talks = [[user(each.prompt), assistant(text)] for each, text in zip(first.examples, first.completions, strict=True)]
    for number in range(1, task.most_turns):
        rows = (takes_part & turn.ended).nonzero().squeeze(1).tolist()
        found = replies([(list(talks[row]), first.examples[row]) for row in rows])
        texts = {row: text for row, text in zip(rows, found, strict=True) if text is not None}
        ids = after_turns(policy, turn, texts)
        too_long = beyond(policy, first, parts, ids, task.max_new_tokens)
        ended = ended & ~chosen(too_long, ended)
        ids = {row: tokens for row, tokens in ids.items() if row not in too_long}
        if not ids:
            break
        takes_part = chosen(ids, ended)
        parts.append(by_environment(parts[0], ids))
        turn = take_turn(number, continued(policy, first, Said.beside(parts), takes_part))
        parts.append(by_policy(turn, takes_part))
        ended = torch.where(takes_part, turn.ended, ended)
        for row in ids:
            talks[row] += [user(texts[row]), assistant(turn.completions[row])]
    return whole_rollout(policy, first, Said.beside(parts), talks, ended, task.max_tokens)


def user(text: str) -> Message:
    """A message that the policy did not write."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """A message of the policy."""
    return {"role": "assistant", "content": text}


def reply_ids(policy: Policy, texts: list[str]) -> list[list[int]]:
    """Token ids of replies; in a chat, with what the template writes between a turn and the policy's next one."""
    if policy.chat:
        around = ([user("question"), assistant(TURN), user(text)] for text in texts)
        texts = [chat_text(policy, messages, add_generation_prompt=True).partition(TURN)[2] for messages in around]
    return text_ids(policy, texts, "reply") if texts else []


def after_turns(policy: Policy, turn: Rollout, texts: dict[int, str]) -> dict[int, list[int]]:
    """Token ids of the replies to these rows of a turn, without the end of the turn that the policy wrote itself."""
    lengths = turn.sequences.mask.sum(1, keepdim=True)
    last = turn.sequences.completion_ids.gather(1, lengths - 1).squeeze(1).tolist()
    eos_ids = policy.eos_ids
    ends = [token if token in eos_ids else None for token in last]
    found = dict(zip(texts, reply_ids(policy, list(texts.values())), strict=True))
    return {row: ids[1:] if ids[:1] == [ends[row]] else ids for row, ids in found.items()}


def beyond(policy: Policy, first: Rollout, parts: list[Said], ids: dict[int, list[int]], turn: int) -> set[int]:
    """The rows for whose reply and a turn of that number of tokens the model has no positions."""
    bound = positions(policy)
    sequences, shown = first.sequences, Said.beside(parts).shown
    read = (sequences.attention[:, : sequences.prompt_width].sum(1) + shown.sum(1)).tolist()
    return {row for row, tokens in ids.items() if bound is not None and read[row] + len(tokens) + turn > bound}


def chosen(rows: Iterable[int], like: Tensor) -> Tensor:
    """[S] bool, true on these rows."""
    found = torch.zeros_like(like)
    found[torch.tensor(sorted(rows), dtype=torch.long, device=like.device)] = True
    return found


def by_policy(turn: Rollout, takes_part: Tensor) -> Said:
    """A turn of the rows [S] that take part."""
    mask = turn.sequences.mask & takes_part[:, None]
    return Said(turn.sequences.completion_ids, mask, mask, turn.sampler_logprobs * mask, turn.entropy)


def by_environment(like: Said, replies: dict[int, list[int]]) -> Said:
    """Replies by row, shaped as a turn of the policy."""
    width = max(map(len, replies.values()))
    tokens = [replies.get(row, []) for row in range(len(like.ids))]
    shown = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in tokens]).bool().to(like.ids.device)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in tokens]).long().to(like.ids.device)
    zeros = like.logprobs.new_zeros(ids.shape)
    return Said(ids, shown, torch.zeros_like(shown), zeros, None if like.entropy is None else zeros)


def continued(policy: Policy, first: Rollout, said: Said, takes_part: Tensor) -> Prompts:
    """A prompt for each row: its own and all turns since, or its own alone where the conversation has ended."""
    sequences, width = first.sequences, first.sequences.prompt_width
    ids = torch.cat([sequences.ids[:, :width], said.ids], 1)
    shown = torch.cat([sequences.attention[:, :width], said.shown & takes_part[:, None]], 1)
    order = columns_first(~shown)[:, -int(shown.sum(1).max()) :]
    shown, ids = shown.gather(1, order), ids.gather(1, order)
    return Prompts(first.examples, first.prompts, torch.where(shown, ids, policy.tokenizer.pad_token_id), shown)


def whole_rollout(
    policy: Policy, first: Rollout, said: Said, talks: list[list[Message]], ended: Tensor, max_tokens: int
) -> Rollout:
    """The rollout of whole conversations: the columns of each row without those in which it says nothing."""
    said = said.columns(columns_first(said.shown)[:, : int(said.shown.sum(1).max())])
    sequences, width = first.sequences, first.sequences.prompt_width
    ids = torch.where(said.shown, said.ids, policy.tokenizer.pad_token_id)
    return replace(
        first,
        examples=[
            replace(example, columns=example.columns | {CONVERSATION: talk})
            for example, talk in zip(first.examples, talks, strict=True)
        ],
        completions=["\n".join(each["content"] for each in talk if each["role"] == "assistant") for talk in talks],
        sequences=Sequences(
            ids=torch.cat([sequences.ids[:, :width], ids], 1),
            attention=torch.cat([sequences.attention[:, :width], said.shown], 1),
            mask=said.mask,
            group_size=sequences.group_size,
        ),
        sampler_logprobs=said.logprobs,
        entropy=None if said.entropy is None else said.entropy * said.mask,
        ended=ended,
        max_tokens=max_tokens,
    )


def encode_turns(policy: Policy, task: Task, examples: list[Example], turns: list[list[str]]) -> Sequences:
    """Prompts with given turns of the policy, each ended as it ends one, and the task's replies between them."""
    prompts = encode(policy, examples, task.shot_examples())
    rows = [given(policy, task, example, texts) for example, texts in zip(examples, turns, strict=True)]
    ids, shown, mask = (concatenate([row[part] for row in rows]).to(policy.device) for part in range(3))
    return Sequences(torch.cat([prompts.ids, ids], 1), torch.cat([prompts.attention, shown], 1), mask)


def given(policy: Policy, task: Task, example: Example, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, tokens and the policy's tokens of a completion with these turns, [1, T] each."""
    talk, end = [user(example.prompt)], end_id(policy)
    ids: list[int] = []
    mask: list[bool] = []
    for number, tokens in enumerate(text_ids(policy, texts, "completion")):
        if number:
            text = task.reply(list(talk), example)
            if text is None:
                raise UserError(
                    f"the task {name_of(task, TASKS)} demonstrates {len(texts)} turns, but its `reply` ends the "
                    f"conversation after {number}; they must agree."
                )
            reply = reply_ids(policy, [text])[0]
            reply = reply[1:] if reply[:1] == [end] else reply
            talk.append(user(text))
            ids, mask = ids + reply, mask + [False] * len(reply)
        talk.append(assistant(texts[number]))
        ids, mask = [*ids, *tokens, end], mask + [True] * (len(tokens) + 1)
    return torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool), torch.tensor([mask])
