"""The family of errors that a user can cause, and how each is told in one line.

Anything wrong with a file, a flag or a definition is raised as a `CaffeError`; the command line
prints it and exits with code 1. Programming errors keep their ordinary Python exceptions.
"""

from __future__ import annotations

TYPE_CHECKING = False  # see caffe_dns
if TYPE_CHECKING:
    from collections.abc import Sequence

#: PyTorch's messages when it runs out of memory, or cannot compute a size.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate",
    "ALLOC_FAILED",
    "Storage size calculation overflowed",
    "integer multiplication overflow",
)
#: Other refusals of the system: a part of the error's text, and what it means.
_REFUSED = {
    "can't start new thread": "no more threads may be started here (ulimit -u, or the limit of a "
    "container)",
    "failed to map segment": "a library cannot be loaded: not enough memory, or its file "
    "system allows no programs",
    # CUDA's messages for failures of a GPU or its driver in the middle of a run.
    "busy or unavailable": "another program has the GPU for itself, or its driver restarted",
    "CUDA error: unknown error": "the GPU's driver does not answer, as happens after suspending",
    "launch timed out": "the GPU's driver ended a kernel that kept a display waiting too long",
    "uncorrectable": "the GPU, or its link to another, is damaged",
    "no kernel image is available": "this PyTorch was not built for a GPU of this kind",
}
#: Words at least this similar count as abbreviations: pool_param, pooling_param.
_MOST = 0.85
#: The most characters of a line that a message shows.
_LONGEST = 200


class CaffeError(RuntimeError):
    """An error in a file, a flag, a definition or an argument that the user gave.

    It is a RuntimeError, which pycaffe raises for what Caffe refuses. `file`, `line`, `layer` and
    `field` say where; callers add what they know with `locate`.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        layer: str | None = None,
        field: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.line = line
        self.layer = layer
        self.field = field
        #: Where the layer that reads `file` is defined, if that is in another file.
        self.read_by: str | None = None

    def locate(
        self,
        *,
        file: str | None = None,
        line: int | None = None,
        layer: str | None = None,
        field: str | None = None,
    ) -> CaffeError:
        """Fill in the parts of the location that are not known yet; returns the error itself."""
        self.file = self.file or file
        self.line = self.line or line
        self.layer = self.layer or layer
        self.field = self.field or field
        return self

    def __str__(self) -> str:
        place = self.file or ""
        if self.line is not None:
            place += f":{self.line}" if place else f"line {self.line}"
        parts = [place] if place else []
        if self.layer is not None:
            parts.append(f"layer '{self.layer}'")
        if self.field is not None:
            parts.append(self.field)
        text = ": ".join([*parts, self.message])
        return f"{text} ({self.read_by})" if self.read_by is not None else text


class BadValue(CaffeError, ValueError):
    """An invalid argument of a function; also a ValueError, as programs expect."""


def shortened(line: str) -> str:
    """A line of a file for a message; only its beginning if it is long."""
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def nearest(word: str, known: Sequence[str]) -> str:
    """` (did you mean 'x'?)` for the known word most similar to `word`, or nothing."""
    from difflib import get_close_matches  # here, because most runs need no messages

    likely = [name for name in get_close_matches(word, known, n=3) if _is_near(word, name)]
    likely = [name for name in known if name.lower() == word.lower()] or likely
    return f" (did you mean '{likely[0]}'?)" if likely else ""


def _is_near(word: str, known: str) -> bool:
    """Whether one is a misspelling of the other: one wrong letter in six, or an abbreviation."""
    from difflib import SequenceMatcher

    # A common ending does not count: foo_param is not log_param.
    rest, _, ending = word.rpartition("_")
    other, _, other_ending = known.rpartition("_")
    differing = (rest, other) if rest and other and ending == other_ending else (word, known)
    slips = _distance(*differing)
    return slips <= 1 + len(differing[0]) // 6 or SequenceMatcher(None, word, known).ratio() > _MOST


def _distance(first: str, second: str) -> int:
    """How many letters to change, insert, delete or swap to turn one into the other.

    That is the distance of optimal string alignment.
    """
    before: list[int] = []
    above = list(range(len(second) + 1))
    for i, letter in enumerate(first, 1):
        row = [i]
        for j, other in enumerate(second, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (letter != other)))
            if i > 1 and j > 1 and letter == second[j - 2] and other == first[i - 2]:
                row[-1] = min(row[-1], before[j - 2] + 1)
        before, above = above, row
    return above[-1]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without a library's details."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or PyTorch ran out of memory, of the host or of a GPU."""
    text = str(error)
    return isinstance(error, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY)


def shortage(error: BaseException) -> str | None:
    """What the system lacks, and what would help; None for other errors."""
    if is_out_of_memory(error):
        return "out of memory; a smaller batch_size would need less"
    return next((what for sign, what in _REFUSED.items() if sign in str(error)), None)
