"""Probabilities of bits, learned while coding: what was seen in several contexts, mixed.

All is done in integers, so that every machine finds the same probabilities. A context remembers how
likely a 1 is in it. In the logistic domain, where these are logarithms of odds, the predictions of
a bit's contexts are added up with weights, and the weights are learned as well.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

#: Odds are in units of 1 / 256, from -LIMIT to LIMIT.
LIMIT = 3071
#: exp(-1 / 256), in units of 2 ** -32.
_DECAY = 4278222805
#: The bits that a context has seen weigh the same up to this many; then old ones are forgotten.
_MEMORY = 255
_RATE = 40
#: What each context's prediction counts for at first, in units of 1 / 65536.
_FIRST_WEIGHT = 13107
#: No bit is taken to be more certain than this, in units of 1 / 65536.
_FLOOR = 16


class Coder(Protocol):
    """Either end of a stream of bits."""

    def code(self, probability: int, bit: int) -> int:
        """Write a bit, or read one; returns it."""
        ...


class Given:
    """In the place of a coder: bits that both ends know."""

    def code(self, probability: int, bit: int) -> int:
        return bit


def _probabilities() -> list[int]:
    """The probability, in units of 1 / 65536, for odds from -LIMIT to LIMIT."""
    table = [0] * (2 * LIMIT + 1)
    odds = 1 << 32
    for distance in range(LIMIT + 1):
        low = (odds << 16) // ((1 << 32) + odds)
        table[LIMIT - distance], table[LIMIT + distance] = low, 65536 - low
        odds = odds * _DECAY >> 32
    return table


def _odds(probabilities: list[int]) -> list[int]:
    """The largest odds with at most this probability, which is in units of 1 / 4096."""
    table, index = [], 0
    for probability in range(8, 65536, 16):
        while index < 2 * LIMIT and probabilities[index + 1] <= probability:
            index += 1
        table.append(index - LIMIT)
    return table


_PROBABILITY_OF = _probabilities()
_ODDS_OF = _odds(_PROBABILITY_OF)
_SHARE = [655360 // (10 * seen + 16) for seen in range(_MEMORY + 1)]


class Mixer:
    """Codes bits through `coder`."""

    def __init__(self, coder: Coder) -> None:
        self._coder = coder
        #: For each context, the probability of a 1 in units of 1 / 65536, and how many bits it saw.
        self._seen: dict[Hashable, list[int]] = {}
        self._weights: dict[str, list[int]] = {}

    def learn_from(self, other: Mixer) -> None:
        """Know what another mixer has learned, and nothing else."""
        self._seen = {context: state.copy() for context, state in other._seen.items()}
        self._weights = {kind: weights.copy() for kind, weights in other._weights.items()}

    def code(self, kind: str, part: int, contexts: tuple[Hashable, ...], bit: int = 0) -> int:
        """Write a bit, or read one; returns it.

        Bits of a `kind` have the same number of contexts, and share weights; those of a `part` of
        it share what was seen in the contexts.
        """
        states = [
            self._seen.setdefault((kind, part, index, context), [32768, 0])
            for index, context in enumerate(contexts)
        ]
        weights = self._weights.setdefault(kind, [_FIRST_WEIGHT] * len(contexts))
        odds = [_ODDS_OF[state[0] >> 4] for state in states]
        mixed = sum(w * o for w, o in zip(weights, odds, strict=True)) >> 16
        probability = _PROBABILITY_OF[max(-LIMIT, min(LIMIT, mixed)) + LIMIT]
        probability = max(_FLOOR, min(65536 - _FLOOR, probability))
        bit = self._coder.code(probability, bit)
        error = ((bit << 16) - probability) * _RATE
        for index, own in enumerate(odds):
            weights[index] += own * error >> 20
        for state in states:
            state[0] += (bit * 65535 - state[0]) * _SHARE[state[1]] >> 16
            state[1] = min(state[1] + 1, _MEMORY)
        return bit
