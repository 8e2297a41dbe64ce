"""Calculates without `eval`. A model writes the expression, so only arithmetic on numbers is evaluated."""

import ast
import operator
from collections.abc import Callable
from typing import Any

OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def calculate(expression: str) -> int | float:
    """Return the value of an expression.

    Raises:
        ValueError: It is not only arithmetic, or a power is too large.
        SyntaxError: It is not an expression.
    """
    return _value(ast.parse(expression, mode="eval").body)


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            first, second = _value(left), _value(right)
            if isinstance(op, ast.Pow) and abs(second) * max(abs(first), 1) > 10_000:
                raise ValueError("the power is too large")
            return OPERATORS[type(op)](first, second)
    raise ValueError("not an arithmetic expression")
