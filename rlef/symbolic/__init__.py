"""The embedded domain: word problems with known truth, and the teacher that knows it."""

from rlef.symbolic.teacher import SymbolicTeacher, make_problems

__all__ = ["SymbolicTeacher", "make_problems"]
