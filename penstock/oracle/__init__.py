"""Selection: ask every candidate, keep every answer, take the first yes. Knows no backend."""

from penstock.oracle.choose import Candidate, choose

__all__ = ["Candidate", "choose"]
