"""Conditions between the axes of a sweep: a small language that is parsed and never executed as Python.

A condition is a comparison of numbers and texts over dotted field names::

    client.lr * client.steps <= 1.5
    dropout.source != "none" or dropout.keep_rate == 1
    model.name in ["mlp", "cnn"] and not privacy.epsilon > 8

Allowed are comparisons, ``in``, ``and``, ``or``, ``not``, brackets, ``+ - * / // % **``, numbers, texts, lists of them,
``true``, ``false``, ``none`` and ``inf``. Anything else is refused by name.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from fljax.core.check import FljaxError

_BINARY: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: lambda a, b: float(a) ** float(b),  # floats overflow to an error, where integers would fill the memory
}
_UNARY: dict[type, Callable] = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_}
_COMPARE: dict[type, Callable] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_WORDS = {"true": True, "false": False, "none": None, "inf": math.inf}
_LONGEST = 500

Lookup = Callable[[str], Any]


def condition(text: str) -> Callable[[Lookup], bool]:
    """Parses a condition.

    Args:
      text: see above.
    Returns:
      (name -> value of a field) -> whether the condition holds.

    Raises:
      FljaxError: one line, where the text is no condition; the function raises it where values cannot be compared.
    """
    if len(text) > _LONGEST:
        raise FljaxError(
            f"Expected a condition of sweep.where to have at most {_LONGEST} characters, found {len(text)}."
        )
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "it cannot be read"
        raise FljaxError(f"Expected sweep.where={text!r} to be a condition: {reason}.") from None
    _check(tree, text)

    def holds(lookup: Lookup) -> bool:
        try:
            return bool(_value(tree, lookup))
        except (TypeError, ZeroDivisionError, OverflowError) as error:
            raise FljaxError(f"Expected sweep.where={text!r} to fit the fields' values: {error}.") from None

    return holds


def _check(node: ast.AST, text: str) -> None:
    """Refuses every construct that is not of the language, before anything is computed."""
    if isinstance(node, ast.BoolOp):
        parts = node.values
    elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        parts = [node.left, node.right]
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        parts = [node.operand]
    elif isinstance(node, ast.Compare) and all(type(o) in _COMPARE for o in node.ops):
        parts = [node.left, *node.comparators]
    elif isinstance(node, ast.List | ast.Tuple):
        parts = node.elts
    elif _plain(node):
        parts = []
    else:
        raise FljaxError(
            f"Expected sweep.where={text!r} to hold comparisons and arithmetic of fields only, "
            f"found {ast.unparse(node)!r}."
        )
    for part in parts:
        _check(part, text)


def _plain(node: ast.AST) -> bool:
    """Whether a node is a number, a text, or the name of a field."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float | str)
    return isinstance(node, ast.Name) or (isinstance(node, ast.Attribute) and _dotted(node) != "")


def _dotted(node: ast.AST) -> str:
    """``a.b`` of an attribute; empty where something other than a name is looked into."""
    if isinstance(node, ast.Name):
        return node.id
    inner = _dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner and isinstance(node, ast.Attribute) else ""


def _value(node: ast.AST, lookup: Lookup) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    if isinstance(node, ast.Name | ast.Attribute):
        return lookup(_dotted(node))
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(part, lookup) for part in node.elts]
    if isinstance(node, ast.UnaryOp):
        return _UNARY[type(node.op)](_value(node.operand, lookup))
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, lookup), _value(node.right, lookup)
        if not isinstance(left, int | float) or not isinstance(right, int | float):
            raise TypeError(f"arithmetic needs numbers, found {left!r} and {right!r}")
        return _BINARY[type(node.op)](left, right)
    if isinstance(node, ast.BoolOp):
        found = (_value(part, lookup) for part in node.values)
        return all(found) if isinstance(node.op, ast.And) else any(found)
    assert isinstance(node, ast.Compare)
    left = _value(node.left, lookup)
    for op, part in zip(node.ops, node.comparators, strict=True):
        right = _value(part, lookup)
        if not _COMPARE[type(op)](left, right):
            return False
        left = right
    return True
