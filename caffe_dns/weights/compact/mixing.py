"""Probabilities of bits, learned while coding, by mixing the predictions of several contexts.

All arithmetic is in integers, so that every machine computes the same probabilities. A context
stores how likely a 1 is in it. In the logistic domain, where probabilities are logarithms of odds,
the predictions of a bit's contexts are added up with weights, and the weights are learned as well.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

#: Odds are in units of 1 / 256, from -LIMIT to LIMIT.
LIMIT = 3071
#: exp(-1 / 256), in units of 2 ** -32.
_DECAY = 4278222805
#: The bits that a context has seen weigh the same up to this many; then old ones are forgotten. A
#: state has eight bits for it.
_MEMORY = 255
#: The state of a context that saw nothing.
_UNSEEN = 32768 << 8
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
_MIXED = [max(_FLOOR, min(65536 - _FLOOR, probability)) for probability in _PROBABILITY_OF]


@dataclass(frozen=True)
class Rules:
    """How contexts learn, and what they count for."""

    #: How fast weights are learned.
    rate: int
    #: By how many bits were seen: how far the next moves a probability, in units of 1 / 65536.
    shares: tuple[int, ...]
    #: By how many bits were seen: how far a prediction is trusted, in units of 1 / 65536.
    trust: tuple[int, ...]
    #: What each prediction counts for at first, in units of 1 / 65536; 0 for equal parts.
    first_weight: int = 0


_COUNTS = range(_MEMORY + 1)
RULES = Rules(
    rate=16,
    shares=tuple(65536 // (seen + 2) for seen in _COUNTS),
    trust=tuple(131072 * seen // (2 * seen + 3) for seen in _COUNTS),
)
#: Those of version 2.
RULES_2 = Rules(
    rate=40,
    shares=tuple(655360 // (10 * seen + 16) for seen in _COUNTS),
    trust=(65536,) * len(_COUNTS),
    first_weight=13107,
)


class Mixer:
    """Codes bits through `coder`."""

    def __init__(self, coder: Coder, rules: Rules) -> None:
        self._coder, self._rules = coder, rules
        #: For each kind, what was seen in each of its contexts: the probability of a 1 in units of
        #: 1 / 65536, above eight bits for how many bits were seen.
        self._seen: dict[str, list[dict[Hashable, int]]] = {}
        self._weights: dict[str, list[int]] = {}

    def learn_from(self, other: Mixer) -> None:
        """Know what another mixer has learned, and nothing else."""
        self._seen = {
            kind: [table.copy() for table in tables] for kind, tables in other._seen.items()
        }
        self._weights = {kind: weights.copy() for kind, weights in other._weights.items()}

    def code(self, kind: str, contexts: tuple[Hashable, ...], bit: int = 0) -> int:
        """Write a bit, or read one; returns it.

        Bits of a `kind` have the same number of contexts, and share weights.
        """
        rules = self._rules
        tables = self._seen.get(kind)
        if tables is None:
            tables = self._seen[kind] = [{} for _ in contexts]
            first = rules.first_weight or 65536 // len(contexts)
            self._weights[kind] = [first] * len(contexts)
        weights = self._weights[kind]
        mixed = 0
        used = []
        for table, context, weight in zip(tables, contexts, weights, strict=True):
            state = table.get(context, _UNSEEN)
            odds = _ODDS_OF[state >> 12] * rules.trust[state & _MEMORY] >> 16
            mixed += weight * odds
            used.append((table, context, state, odds))
        probability = _MIXED[max(-LIMIT, min(LIMIT, mixed >> 16)) + LIMIT]
        bit = self._coder.code(probability, bit)
        error = ((bit << 16) - probability) * rules.rate
        sure = 65535 if bit else 0
        for index, (table, context, state, odds) in enumerate(used):
            weights[index] += odds * error >> 20
            before, seen = state >> 8, state & _MEMORY
            after = before + ((sure - before) * rules.shares[seen] >> 16)
            table[context] = after << 8 | (seen + 1 if seen < _MEMORY else seen)
        return bit
