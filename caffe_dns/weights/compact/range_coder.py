"""An arithmetic coder for bits of known probability, in 32-bit integers.

Both ends keep an interval [low, high] of 32-bit numbers. A bit takes the lower or the upper part of
it; leading bytes that can no longer differ are written, and the interval is widened by as much.
Probabilities are in units of 1 / 65536.
"""

from __future__ import annotations

_MAX = 0xFFFFFFFF


class Interval:
    """What is common to both ends."""

    def __init__(self) -> None:
        self.low, self.high = 0, _MAX

    def _middle(self, probability: int) -> int:
        """The last number of the part that stands for a 1."""
        size = self.high - self.low
        return self.low + (size >> 16) * probability + ((size & 0xFFFF) * probability >> 16)

    def _take(self, bit: int, middle: int) -> None:
        if bit:
            self.high = middle
        else:
            self.low = middle + 1


class Encoder(Interval):
    """Writes bits."""

    def __init__(self) -> None:
        super().__init__()
        self._written = bytearray()

    def code(self, probability: int, bit: int) -> int:
        """Write a bit that is 1 with this probability (above 0, below 65536); returns the bit."""
        self._take(bit, self._middle(probability))
        while not (self.low ^ self.high) >> 24:
            self._written.append(self.high >> 24)
            self.low = self.low << 8 & _MAX
            self.high = self.high << 8 & _MAX | 0xFF
        return bit

    def finish(self) -> bytes:
        """All that was written. Zeros that would follow it are left out; a decoder adds them."""
        for count in range(5):
            shift = 8 * (4 - count)
            # The smallest number from low on that ends with so many zeros.
            number = -(-self.low >> shift) << shift
            if number <= self.high:
                break
        return bytes(self._written) + number.to_bytes(4, "big")[:count]


class Decoder(Interval):
    """Reads bits. Raises ValueError, rather than go on for ever, where there are none left."""

    def __init__(self, raw: bytes) -> None:
        super().__init__()
        self._raw = raw
        self._read = 4
        self._number = int.from_bytes(raw[:4].ljust(4, b"\0"), "big")

    def code(self, probability: int, bit: int) -> int:
        """The next bit, which is 1 with this probability; `bit` does not matter."""
        middle = self._middle(probability)
        bit = int(self._number <= middle)
        self._take(bit, middle)
        while not (self.low ^ self.high) >> 24:
            if self._read == len(self._raw) + 4:
                raise ValueError("it ends too early")
            following = self._raw[self._read] if self._read < len(self._raw) else 0
            self._read += 1
            self.low = self.low << 8 & _MAX
            self.high = self.high << 8 & _MAX | 0xFF
            self._number = self._number << 8 & _MAX | following
        return bit
