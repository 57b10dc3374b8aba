"""What went wrong, out of what a task group says went wrong."""

from __future__ import annotations

from prfaas_lab.errors import LabError


def the_fault(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The fault a person can mend, if that is all there is; anything else is a bug and stays whole."""
    faults, others = errors.split(LabError)
    if others is not None or faults is None:
        return errors
    first: BaseException = faults
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
