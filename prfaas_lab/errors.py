"""What can go wrong in a way that a person can mend."""

from __future__ import annotations


class LabError(Exception):
    """A fault a person can fix: where it is, what it is, and the remedy.

    `assert` and the built-in exceptions are for our own bugs; everything a user, a file or the
    machine can cause is one of these. The CLI prints `str(error)` without a traceback and exits
    with `exit_code`.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(what)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        cure = f" ({self.remedy})" if self.remedy else ""
        return f"{place}{self.what}{cure}"


class SpecError(LabError):
    """A topology or scenario file is wrong; nothing was started. Holds every mistake at once."""

    exit_code = 2

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


class UnitError(LabError, ValueError):
    """A quantity that does not read as its unit (also a ValueError, so that pydantic reports it)."""

    exit_code = 2


class UsageError(LabError):
    """What was asked on the command line cannot be; nothing was started."""

    exit_code = 2


class FabricError(LabError):
    """The emulated network could not be made, shaped, measured or removed."""


class EngineError(LabError):
    """An engine process did not start, died, or refused a request."""


class TransportError(LabError):
    """A KVCache transfer failed; subclasses in `transport` say how."""


class RunFailed(LabError):
    """The run ended, but not well: mismatched tokens, failed requests or an unfaithful network."""
