"""Mutants of a function's source: each differs from it in one operator, constant, name, argument or dropped call."""

import ast
import copy
from collections.abc import Iterator

OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.MatMult: ast.Mult}
OPERATORS |= {ast.FloorDiv: ast.Div, ast.RShift: ast.LShift, ast.LShift: ast.RShift, ast.BitAnd: ast.BitOr}
COMPARISONS = {ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.LtE)}
COMPARISONS |= {ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,)}
NAMES = {
    "mean": ("sum", "median"), "sum": ("mean",), "amin": ("amax",), "amax": ("amin",), "min": ("max",), "max": ("min",),
    "all": ("any",), "any": ("all",), "lower": ("upper",), "upper": ("lower",), "round": ("floor", "ceil", "trunc"),
    "argmax": ("argmin",), "log": ("log2", "log1p"), "exp": ("exp2",), "var": ("std",), "sqrt": ("square",),
    "running_mean": ("running_var", "mean"), "running_var": ("running_mean", "var"), "relu": ("abs",), "square": ("abs",),
    "softmax": ("log_softmax", "sigmoid"), "teacher_logits": ("student_logits",), "student_logits": ("teacher_logits",),
    "loss_ds": ("loss_as",), "loss_as": ("loss_ds",), "hinge": ("hinge_lower", "hinge_upper"), "mse_loss": ("l1_loss",),
}  # fmt: skip
DROPPED = (
    "abs",
    "round",
    "square",
    "sqrt",
    "relu",
    "clamp",
    "log",
    "exp",
    "detach",
    "float",
    "long",
    "int",
    "to",
    "mean",
    "sum",
)
COMMUTE = ("maximum", "minimum", "hypot", "mse_loss", "transpose")
"""Functions that give the same with their arguments exchanged."""


def mutants(source: str) -> Iterator[str]:
    """Sources of all mutants of a lambda."""
    tree = ast.parse(source, mode="eval")
    seen = {ast.unparse(tree)}
    for i, node in enumerate(ast.walk(tree.body.body)):
        for change in () if isinstance(node, ast.Slice) else _changes(node):
            twin = copy.deepcopy(tree)
            target = list(ast.walk(twin.body.body))[i]
            twin = _Replace(target, change).visit(twin)
            text = ast.unparse(ast.fix_missing_locations(twin))
            if text not in seen and _is_python(text):
                seen.add(text)
                yield text


def _is_python(text: str) -> bool:
    try:
        compile(text, "mutant", "eval")
    except SyntaxError:
        return False
    return True


class _Replace(ast.NodeTransformer):
    def __init__(self, target: ast.AST, change: ast.AST) -> None:
        self.target, self.change = target, change

    def visit(self, node: ast.AST) -> ast.AST:
        return self.change if node is self.target else self.generic_visit(node)


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    twin = copy.deepcopy(node)
    match twin:
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            yield ast.BinOp(twin.left, OPERATORS[type(op)](), twin.right)
            yield ast.BinOp(twin.right, op, twin.left) if isinstance(op, ast.Sub | ast.Div | ast.Pow) else twin
            yield twin.left
            yield twin.right
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            for other in COMPARISONS[type(op)]:
                yield ast.Compare(twin.left, [other()], twin.comparators)
        case ast.BoolOp():
            yield ast.BoolOp(ast.Or() if isinstance(twin.op, ast.And) else ast.And(), twin.values)
            yield from twin.values
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=1)):
            yield ast.Constant(0)  # of two dimensions, 1 is the last, as -1 is
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            yield twin.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not twin.value)
        case ast.Constant(value=int() | float()):
            yield from (ast.Constant(value) for value in (twin.value + 1, twin.value - 1, 2 * twin.value))
        case ast.Attribute(attr=name) if name in NAMES:
            yield from (ast.Attribute(twin.value, other, twin.ctx) for other in NAMES[name])
        case ast.Name(id=name) if name in ("all", "any", "min", "max"):
            yield ast.Name(NAMES[name][0], twin.ctx)
        case ast.Tuple(elts=[a, b], ctx=ast.Load()):
            yield ast.Tuple([b, a], twin.ctx)
            yield ast.Tuple([a, ast.UnaryOp(ast.USub(), b)], twin.ctx)
            yield ast.Tuple([ast.UnaryOp(ast.USub(), a), b], twin.ctx)
        case ast.Dict(keys=[_, _, *_]):
            for k in range(len(twin.keys)):
                yield ast.Dict(twin.keys[:k] + twin.keys[k + 1 :], twin.values[:k] + twin.values[k + 1 :])
    if isinstance(twin, ast.Call) and isinstance(twin.func, ast.Attribute) and twin.func.attr in DROPPED:
        owner = twin.func.value
        if getattr(owner, "id", "") not in ("torch", "F", "np", "math", "lab"):
            yield owner
    if isinstance(twin, ast.Call) and len(twin.args) == 2 and getattr(twin.func, "attr", "") not in COMMUTE:
        yield ast.Call(twin.func, twin.args[::-1], twin.keywords)
