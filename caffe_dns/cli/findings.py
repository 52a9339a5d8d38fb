"""The findings of `dns doctor`: one line each, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, WRONG = "ok", "note", "wrong"


@dataclass(frozen=True)
class Finding:
    """`level` is OK, NOTE (training works all the same) or WRONG (it does not)."""

    level: str
    what: str
    advice: str = ""

    def line(self) -> str:
        advice = f" - {self.advice}" if self.advice else ""
        return f"{self.level:<6}{self.what}{advice}"
