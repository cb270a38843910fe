"""Continuous batching: a finished answer makes room for the next prompt at once, and no prompt is padded.

Every row of the batch is a slot of a key-value cache allocated once. A plain loop decodes a batch until its longest
answer ends, pads prompts, copies the whole cache for each new token and repeats keys for every query head; here rows
are refilled, prompts are prefilled end to end (see packed_attention) and once for all their draws, a token's keys are
written in place, and query heads that share a key head share its keys. A slot may be given several
tokens at once: its next one and guesses of what follows (see guesses), of which the right ones stay.
"""

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.decoding.guesses import Text
from models.kernels.packed_attention import Documents, attend_by_document, no_mask
from models.kernels.packed_linear import packed_linears

SelectToken = Callable[[Tensor, list[int]], Tensor]
"""(logits (n, vocabulary), requests (n,)) -> next tokens (n,) on the CPU."""
CAPACITY_STEP = 64  # the cache grows by so many tokens at a time


class SlotCache:
    """Keys and values of every layer: (slots, key heads, capacity, d), each slot filled from its start.

    Args:
        num_slots: answers in progress at once.

    Attributes:
        num_slots: answers in progress at once.
        lengths: tokens in each slot, the shared prefix included.
        prefix_length: tokens that all prompts share; 0 without such.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.lengths = [0] * num_slots
        self.prefix_length = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._prefix: dict[int, tuple[Tensor, Tensor]] = {}
        self._slots: Sequence[int] = []  # those that are being filled; empty while decoding
        self._is_prefix = False

    # ------------------------------------------------------------------ between forward passes

    def begin_prefix(self) -> None:
        """The next pass computes what all prompts share."""
        self._is_prefix = True

    def begin_prompts(self, slots: Sequence[int], lengths: Sequence[int]) -> None:
        """The next pass computes the rest of some prompts, end to end, for the slots that they go to."""
        self._is_prefix, self._slots = False, slots
        for slot, length in zip(slots, lengths, strict=True):
            self.lengths[slot] = self.prefix_length + length

    def begin_tokens(self, counts: Sequence[int], device: torch.device) -> Tensor:
        """The next pass computes `counts[i]` tokens of slot i, all end to end; returns their positions (1, N)."""
        self._is_prefix, self._slots = False, []
        most, longest = max(counts), max(length + count for length, count in zip(self.lengths, counts, strict=False))
        slots = [slot for slot, count in enumerate(counts) for _ in range(count)]
        places = [place for count in counts for place in range(count)]
        positions = [self.lengths[slot] + place for slot, place in zip(slots, places, strict=True)]
        self._rows, self._places, self._positions = torch.tensor([slots, places, positions], device=device)
        # (slots, 1, most, longest), True where a token sees one; places behind a slot's last token see the first
        last_seen = torch.zeros(len(counts), most, dtype=torch.int64, device=device)
        last_seen[self._rows, self._places] = self._positions
        self._mask = (torch.arange(longest, device=device) <= last_seen[:, :, None])[:, None]
        return self._positions[None]

    def keep_tokens(self, counts: Sequence[int]) -> None:
        """Of the tokens of the pass before, the first `counts[i]` of slot i stay; the next ones are written over."""
        for slot, count in enumerate(counts):
            self.lengths[slot] += count

    def copy(self, source: int, target: int, length: int) -> None:
        """Let one slot hold the first `length` tokens of another."""
        for keys, values in self._layers.values():
            for kept in (keys, values):
                kept[target, :, :length] = kept[source, :, :length]
        self.lengths[target] = length

    # ------------------------------------------------------------------ inside a forward pass

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, documents: Documents | None, scaling: float | None
    ) -> Tensor:
        """Store a layer's new keys and values, and attend to all that the slots hold.

        Args:
            layer: number of the layer.
            query: (1, heads, T, d), prompts end to end, or the next tokens of all active slots.
            key: (1, key heads, T, d).
            value: (1, key heads, T, d).
            documents: the prompts' lengths; None for tokens in slots.
            scaling: what the scores are multiplied by; None for 1 / sqrt(d).

        Returns:
            (1, T, heads, d).
        """
        if documents is None:
            return self._attend_tokens(layer, query, key, value, scaling)
        if self._is_prefix:
            self._prefix[layer] = (key, value)
            self.prefix_length = key.shape[2]
            return attend_by_document(query, key, value, documents, scaling=scaling)
        self._store(layer, key, value, documents.lengths)
        if self.prefix_length:
            kept_keys, kept_values = self._prefix[layer]
            key, value = torch.cat([kept_keys, key], dim=2), torch.cat([kept_values, value], dim=2)
        return attend_by_document(query, key, value, documents, scaling=scaling)

    def _store(self, layer: int, key: Tensor, value: Tensor, lengths: Sequence[int]) -> None:
        """Put prompts' keys and values, (1, key heads, sum of lengths, d), into the slots that are being filled."""
        prefix = self.prefix_length
        keys, values = self._room(layer, value, prefix + max(lengths))
        parts = zip(self._slots, key.split(list(lengths), dim=2), value.split(list(lengths), dim=2), strict=True)
        for slot, own_keys, own_values in parts:
            if prefix:
                keys[slot, :, :prefix], values[slot, :, :prefix] = (part[0] for part in self._prefix[layer])
            end = prefix + own_keys.shape[2]
            keys[slot, :, prefix:end], values[slot, :, prefix:end] = own_keys[0], own_values[0]

    def _attend_tokens(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Attention (1, N, heads, d) of the slots' next tokens to what their slots hold, and to those before them."""
        active, _, most, longest = self._mask.shape
        keys, values = self._room(layer, value, longest)
        keys[self._rows, :, self._positions] = key[0].transpose(0, 1).to(keys.dtype)
        values[self._rows, :, self._positions] = value[0].transpose(0, 1)
        heads, key_heads, width = query.shape[1], key.shape[1], query.shape[3]
        group = heads // key_heads
        asked = query.new_zeros(active, most, heads, width)
        asked[self._rows, self._places] = query[0].transpose(0, 1)
        # (active, key heads, group * most, d): heads that share a key head are its queries
        grouped = asked.view(active, most, key_heads, group, width).permute(0, 2, 3, 1, 4).flatten(2, 3)
        answer = nn.functional.scaled_dot_product_attention(
            grouped,
            keys[:active, :, :longest],
            values[:active, :, :longest],
            attn_mask=self._mask.repeat(1, 1, group, 1),
            scale=scaling,
        )
        answer = answer.view(active, key_heads, group, most, width).permute(0, 3, 1, 2, 4)
        return answer[self._rows, self._places].reshape(1, -1, heads, width)

    def _room(self, layer: int, like: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The layer's cache, grown to hold `length` tokens in every slot; its keys are of the values' type.

        Under autocast rotated keys are float32 and values are not; attention would cast all keys for each token.
        """
        have = self._layers[layer][0].shape[2] if layer in self._layers else 0
        if have < length:
            # grows by a share of itself too, so that copying stays rare
            capacity = -(-max(length, have + have // 4) // CAPACITY_STEP) * CAPACITY_STEP
            shape = (self.num_slots, like.shape[1], capacity, like.shape[3])
            new = like.new_zeros(shape), like.new_zeros(shape)
            if have:
                for target, source in zip(new, self._layers[layer], strict=True):
                    target[:, :, :have] = source
            self._layers[layer] = new
        return self._layers[layer]


@dataclass
class _Running:
    request: int
    text: Text


def decode_continuously(
    net: PreTrainedModel,
    prompts: Sequence[Tensor],
    *,
    max_new_tokens: int,
    num_slots: int,
    stop_token_ids: Sequence[int],
    select: SelectToken,
    guesses: bool = True,
    on_answers: Callable[[int], object] = lambda count: None,
) -> list[list[int]]:
    """Answers to prompts, in their order, each with the stop token that ended it, if one did.

    Args:
        net: a causal language model in eval mode that attends with `packed` attention.
        prompts: tensors (length_i,) int64.
        max_new_tokens: longest answer, stop token included.
        num_slots: answers in progress at once.
        stop_token_ids: tokens that end an answer.
        select: chooses the next tokens.
        guesses: whether to feed guesses of the next tokens too; worth it where most of them are right.
        on_answers: told how many answers have just ended.
    """
    with packed_linears(net, rows=min(num_slots, len(prompts))):
        return _decode(net, prompts, max_new_tokens, num_slots, set(stop_token_ids), select, guesses, on_answers)


def _decode(
    net: PreTrainedModel,
    prompts: Sequence[Tensor],
    max_new_tokens: int,
    num_slots: int,
    stops: set[int],
    select: SelectToken,
    guesses: bool,
    on_answers: Callable[[int], object],
) -> list[list[int]]:
    device = net.device
    answers: list[list[int]] = [[] for _ in prompts]
    # the longest first: what starts last should be short
    waiting = deque(sorted(range(len(prompts)), key=lambda number: -len(prompts[number])))
    cache = SlotCache(min(num_slots, len(prompts)))
    prefix = _shared_length(prompts)
    if prefix:
        cache.begin_prefix()
        ids = prompts[0][:prefix].to(device)[None]
        _forward(net, ids, torch.arange(prefix, device=device)[None], cache, Documents(0, True, [prefix]))
    running: list[_Running] = []
    while waiting or running:
        if waiting and len(running) < cache.num_slots:
            unread, copies = [], []
            while waiting and len(running) < cache.num_slots:
                entry = _Running(request := waiting.popleft(), Text(prompts[request].tolist()))
                twin = next(
                    (slot for slot, other in enumerate(running) if other.text.prompt == entry.text.prompt), None
                )
                if twin is None:
                    unread.append(len(running))
                else:  # what it reads of its prompt is the last token, with those that decode
                    copies.append((twin, len(running), len(entry.text.prompt) - 1))
                running.append(entry)
            if unread:
                rests = [prompts[running[slot].request][prefix:] for slot in unread]
                lengths = [len(rest) for rest in rests]
                cache.begin_prompts(unread, lengths)
                positions = torch.cat([torch.arange(prefix, prefix + length) for length in lengths])
                states = _forward(
                    net, torch.cat(rests).to(device)[None], positions.to(device)[None], cache,
                    Documents(prefix, False, lengths),
                )  # fmt: skip
                ends = torch.tensor(lengths).cumsum(0) - 1
                chosen = select(_logits(net, states[0, ends.to(device)]), [running[slot].request for slot in unread])
                for slot, token in zip(unread, chosen.tolist(), strict=True):
                    running[slot].text.append(token)
            for source, target, length in copies:
                cache.copy(source, target, length)
        else:
            # the last token of a text has not been read; its answer has room for the next one and so many behind it
            rooms = [max_new_tokens - len(entry.text.answer) - 1 for entry in running]
            guessed = [entry.text.guess(room) if guesses else [] for entry, room in zip(running, rooms, strict=True)]
            fed = [[entry.text.tokens[-1], *guess] for entry, guess in zip(running, guessed, strict=True)]
            ids = torch.tensor([list(itertools.chain(*fed))], device=device)
            positions = cache.begin_tokens([len(tokens) for tokens in fed], device)
            logits = _logits(net, _forward(net, ids, positions, cache, None)[0])
            cache.keep_tokens(_say(running, guessed, logits, stops, select))
        for slot in reversed(range(len(running))):
            entry = running[slot]
            answer = entry.text.answer
            if answer and (answer[-1] in stops or len(answer) >= max_new_tokens):
                answers[entry.request] = answer
                on_answers(1)
                last = running.pop()
                if slot < len(running):
                    cache.copy(len(running), slot, cache.lengths[len(running)])
                    running[slot] = last
    return answers


def _say(
    running: Sequence[_Running], guessed: Sequence[list[int]], logits: Tensor, stops: set[int], select: SelectToken
) -> list[int]:
    """Let each text go on by its next token, and by those behind it as long as they are what was guessed.

    Args:
        running: the texts in the slots.
        guessed: what was fed for each behind its last token.
        logits: (N, V) of what was fed, end to end.
        stops: tokens that end an answer.
        select: chooses the next tokens.

    Returns:
        How many tokens each text gained.
    """
    starts = [0, *itertools.accumulate(1 + len(guess) for guess in guessed)]
    gained = [0] * len(running)
    going = list(range(len(running)))
    while going:
        rows = [starts[slot] + gained[slot] for slot in going]
        chosen = select(logits[rows], [running[slot].request for slot in going]).tolist()
        right = []
        for slot, token in zip(going, chosen, strict=True):
            running[slot].text.append(token)
            gained[slot] += 1
            if guessed[slot][gained[slot] - 1 : gained[slot]] == [token] and token not in stops:
                right.append(slot)
        going = right
    for entry, guess, count in zip(running, guessed, gained, strict=True):
        if guess:
            entry.text.judge(count - 1)
    return gained


def _forward(
    net: PreTrainedModel, ids: Tensor, positions: Tensor, cache: SlotCache, documents: Documents | None
) -> Tensor:
    states: Tensor = net.base_model(
        input_ids=ids,
        position_ids=positions,
        attention_mask=no_mask(ids),
        use_cache=False,
        slots=cache,
        documents=documents,
    ).last_hidden_state
    return states  # (n, T, d)


def _logits(net: PreTrainedModel, states: Tensor) -> Tensor:
    """(n, d) -> (n, V) float32."""
    logits: Tensor = net.get_output_embeddings()(states)
    return logits.float()


def _shared_length(prompts: Sequence[Tensor]) -> int:
    """Leading tokens that all prompts share; at least one of each prompt is left."""
    shared = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0]
    for prompt in prompts:
        differs = (prompt[:shared] != first[:shared]).nonzero()
        if len(differs):
            shared = int(differs[0, 0])
    return shared if len(prompts) > 1 else 0
