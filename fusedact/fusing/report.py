"""What was fused and what was left, per qualified name: plain objects, and a table for people."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One activation of the model."""

    name: str  # the module whose forward has it, or the activation module; "" is the model itself
    what: str  # "linear + gelu", "silu gate", "relu"
    fused: bool
    reason: str = ""  # why it is left, or why no more of it is fused
    text: str = ""  # the source
    line: int = 0

    @property
    def state(self) -> str:
        """ "fused" with what stands around it, "alone" (by itself, in one pass), or "left" as it was."""
        if not self.fused:
            return "left"
        return "fused" if " + " in self.what or self.what.endswith("gate") else "alone"


@dataclass(frozen=True)
class Report:
    """All entries, and modules whose source could not be read."""

    entries: tuple[Entry, ...]
    unread: tuple[tuple[str, str], ...] = ()  # (name, why)
    note: str = ""  # what verification said

    @property
    def fused(self) -> tuple[Entry, ...]:
        """The entries that are fused."""
        return tuple(e for e in self.entries if e.fused)

    @property
    def left(self) -> tuple[Entry, ...]:
        """The entries that are not."""
        return tuple(e for e in self.entries if not e.fused)

    @property
    def share(self) -> float:
        """The fused part of the activations, 1 for a model that has none."""
        return len(self.fused) / len(self.entries) if self.entries else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain objects, for JSON."""
        return {
            "entries": [asdict(e) for e in self.entries], "unread": [list(u) for u in self.unread],
            "note": self.note, "share": self.share,
        }  # fmt: skip

    def table(self) -> Any:
        """A rich table; rich comes with the extra `demo`."""
        from rich.markup import escape
        from rich.table import Table

        table = Table("module", "activation", "", "source", "why", title=self._title())
        for e, times in self._grouped():
            where = f"{e.text} (line {e.line})" if e.line else e.text
            what = e.what + f"  ×{times}" * (times > 1)
            table.add_row(*map(escape, (e.name or "(the model)", what, e.state, where, e.reason)))
        for name, why in self.unread:
            table.add_row(escape(name or "(the model)"), "", "not read", "", escape(why))
        return table

    def __rich__(self) -> Any:
        return self.table()

    def _title(self) -> str:
        note = f"; {self.note}" if self.note else ""
        alone = sum(e.state == "alone" for e in self.entries)
        kinds = f", {alone} of them alone" if alone else ""
        return f"{len(self.fused)} of {len(self.entries)} activations fused ({self.share:.0%}){kinds}{note}"

    def _grouped(self) -> list[tuple[Entry, int]]:
        """Entries that differ in the numbers of their names only, once, with how many there are."""
        groups: dict[Entry, list[Entry]] = {}
        for e in self.entries:
            groups.setdefault(replace(e, name=re.sub(r"\b\d+\b", "*", e.name)), []).append(e)
        return [(common if len(all_) > 1 else all_[0], len(all_)) for common, all_ in groups.items()]

    def __str__(self) -> str:
        lines = [self._title()]
        for e, times in self._grouped():
            why = f" ({e.reason})" if e.reason else ""
            where = f"  [{e.text}]" if e.text else ""
            many = f"  ×{times}" if times > 1 else ""
            lines.append(f"  {e.state:5} {e.name or '(the model)'}: {e.what}{many}{why}{where}")
        lines += [f"  not read {name or '(the model)'}: {why}" for name, why in self.unread]
        return "\n".join(lines)
