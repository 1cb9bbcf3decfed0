"""Change one thing at a time in autoip/core, and list the changes that core's unit tests do not notice.

A *mutant* is core with one operator, constant, condition, case, statement or keyword argument changed. The tests
*kill* it if one of them fails; what *survives* is code that no test looks at. A mutant that cannot make a difference
is *equivalent*, and stands in equivalent-mutants.txt with the reason.

Each mutant is a forked child of this process, which has imported what the tests need but nothing of autoip.

    python -m tools.mutate [--jobs N] [--sample N] [--equivalent] [FILE...]

Exit status: 0, or 1 if less than 95 % of the mutants that are not equivalent were killed, if the list has a line that
names no mutant, or (with --equivalent) one that names a mutant that was killed; 2 if the tests fail without a change.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.machinery
import importlib.util
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

TOP = Path(__file__).resolve().parents[1]
CORE = TOP / "autoip" / "core"
EQUIVALENT = Path(__file__).with_name("equivalent-mutants.txt")
TESTS: Mapping[str, tuple[str, ...]] = {
    "policy.py": ("policy",),
    "proxy_arp.py": ("proxy_arp",),
    "arp.py": ("arp", "negotiation"),
    "neighbours.py": ("neighbours",),
}
"""The tests of a file, where they are fewer than all of `TESTS_ALL`."""
TESTS_ALL = ("transitions", "policy", "proxy_arp", "arp", "candidates", "neighbours", "negotiation")
PRELOADED = ("asyncio", "hypothesis.strategies", "lab.journal", "pyroute2.netlink", "pytest")
KILLED_AT_LEAST = 0.95
CPU_SECONDS = 6  # the tests take 1 to 2; they never wait, so only an endless loop takes more
MEMORY = 1 << 29  # bytes; an endless loop may fill a list

COMPARISONS: Mapping[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: Mapping[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
}
_NO, _YES = ast.Constant(False), ast.Constant(True)


@dataclass
class Mutant:
    """One change: in the field of `parent`, `old` becomes `new`."""

    file: Path
    tree: ast.Module
    line: int
    parent: ast.AST
    field: str
    index: int | None
    old: ast.AST
    new: ast.AST
    name: str = ""
    """The file, the function or class, and the change; without the line, which moves."""

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node

    def compile(self) -> CodeType:
        self.put(ast.copy_location(self.new, self.old))
        return compile(ast.fix_missing_locations(self.tree), self.file, "exec")

    def text(self) -> str:
        """The change in words: of the whole expression around a constant."""
        around = self.parent if isinstance(self.old, ast.Constant) else None
        before = _head(around or self.old)
        self.put(self.new)
        after = _head(around or self.new)
        self.put(self.old)
        return f"{before}  ->  {after}"


def _head(node: ast.AST) -> str:
    """Source of an expression or statement, on one line; of a compound one without its body."""
    if isinstance(node, ast.match_case):
        guard = f" if {ast.unparse(node.guard)}" if node.guard else ""
        return f"case {ast.unparse(node.pattern)}{guard}"
    if isinstance(node, ast.If | ast.While):
        return f"{type(node).__name__.lower()} {ast.unparse(node.test)}"
    return " ".join(ast.unparse(node).split())


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _without_one(nodes: Sequence[ast.AST]) -> Iterator[list[ast.AST]]:
    for index in range(len(nodes)):
        yield [*nodes[:index], *nodes[index + 1 :]]


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What a node is replaced with, one at a time."""
    match node:
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.Compare(ops=ops):
            for index, op in enumerate(ops):
                for other in COMPARISONS[type(op)]:
                    yield _with(node, ops=[*ops[:index], other(), *ops[index + 1 :]])
        case ast.BinOp(op=ast.BitOr(), left=left, right=right):
            yield from (left, right)
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in ARITHMETIC:
            yield _with(node, op=ARITHMETIC[type(op)]())
        case ast.BoolOp(op=op, values=values):
            yield _with(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
            for rest in _without_one(values):
                yield rest[0] if len(rest) == 1 else _with(node, values=rest)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.If() | ast.IfExp():
            yield from (_with(node, test=_YES), _with(node, test=_NO))
        case ast.While():
            yield _with(node, test=_NO)
        case ast.comprehension(ifs=[_, *_]):
            yield _with(node, ifs=[])
        case ast.match_case(guard=guard):
            yield _with(node, guard=_NO)
            if guard is not None:
                yield _with(node, guard=None)
        case ast.MatchOr(patterns=patterns):
            for rest in _without_one(patterns):
                yield rest[0] if len(rest) == 1 else _with(node, patterns=rest)
        case ast.Call(keywords=keywords):
            for index, keyword in enumerate(keywords):
                if not isinstance(keyword.value, ast.Constant):
                    yield _with(node, keywords=[*keywords[:index], *keywords[index + 1 :]])
    match node:
        case ast.Expr(value=ast.Call()) | ast.Assign() | ast.AugAssign():
            yield ast.Pass()
        case ast.AnnAssign(target=ast.Attribute()) | ast.Raise() | ast.Break() | ast.Return(None):
            yield ast.Pass()


def mutants(file: Path) -> list[Mutant]:
    """All changes of one file, from the first line to the last."""
    tree = ast.parse(file.read_text())
    found: list[Mutant] = []
    names: Counter[str] = Counter()

    def visit(parent: ast.AST, scope: str, line: int) -> None:
        for field, value in ast.iter_fields(parent):
            if field in ("annotation", "returns"):
                continue
            for index, node in enumerate(value if isinstance(value, list) else [value]):
                if not isinstance(node, ast.AST) or _is_alias(node):
                    continue
                at = getattr(node, "lineno", line)
                inner = scope
                if isinstance(node, ast.ClassDef | ast.FunctionDef):
                    inner = f"{scope}.{node.name}" if scope else node.name
                for new in replacements(node):
                    if not scope and isinstance(new, ast.Pass):
                        continue  # a name that is gone from the module is an error of the import
                    position = index if isinstance(value, list) else None
                    mutant = Mutant(file, tree, at, parent, field, position, node, new)
                    name = f"{file.name} {scope or 'module'}: {mutant.text()}"
                    names[name] += 1
                    mutant.name = name + (f"  ({names[name]})" if names[name] > 1 else "")
                    found.append(mutant)
                visit(node, inner, at)

    visit(tree, "", 1)
    return found


def _is_alias(node: ast.AST) -> bool:
    """Whether it is a name for a type, which does nothing."""
    return isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias"


class _Loader(importlib.machinery.SourceFileLoader):
    """Give the import system one module's changed code."""

    def __init__(self, mutant: Mutant) -> None:
        super().__init__(f"autoip.core.{mutant.file.stem}", str(mutant.file))
        self._code = mutant.compile()

    def get_code(self, fullname: str) -> CodeType:
        return self._code

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)


def _test(mutant: Mutant | None) -> int:
    """Run the tests in this process, which ends afterwards."""
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if mutant is not None:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)
        sys.meta_path.insert(0, _Loader(mutant))
    options = ["-q", "-x", "--assert=plain", "--hypothesis-profile=mutate"]
    options += ["-p", "no:cacheprovider", "-p", "no:xdist"]
    names = TESTS.get(mutant.file.name, TESTS_ALL) if mutant else TESTS_ALL
    return pytest.main([*options, *(f"tests/unit/test_{name}.py" for name in names)])


def _fork(mutant: Mutant | None) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        status = _test(mutant)
    finally:
        os._exit(status)


def survivors(given: Sequence[Mutant], jobs: int, *, equivalent: bool) -> int:
    """Run the tests on each mutant, `jobs` at a time; print those that do what they should not.

    Args:
        given: the mutants.
        jobs: how many processes.
        equivalent: they should survive; else they should be killed.

    Returns:
        How many survived.
    """
    running: dict[int, Mutant] = {}
    alive = 0
    waiting = iter(given)
    while True:
        while len(running) < jobs and (mutant := next(waiting, None)) is not None:
            running[_fork(mutant)] = mutant
        if not running:
            return alive
        pid, status = os.wait()
        mutant = running.pop(pid)
        if status == 0:
            alive += 1
        if (status == 0) is not equivalent:
            state = "survived" if status == 0 else "killed"
            print(f"{mutant.file.relative_to(TOP)}:{mutant.line}: {state}: {mutant.name}")


def listed_equivalent() -> list[str]:
    """The names of the mutants that cannot make a difference."""
    lines = EQUIVALENT.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _prepare() -> None:
    """Import what the children need, so that each of them starts fast."""
    sys.dont_write_bytecode = True
    for name in PRELOADED:
        importlib.import_module(name)
    from hypothesis import Phase, settings

    profile = settings(database=None, deadline=None, derandomize=True, phases=[Phase.generate])
    settings.register_profile("mutate", profile)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.mutate")
    parser.add_argument("--jobs", type=int, default=2, help="mutants side by side (2)")
    parser.add_argument("--sample", type=int, metavar="N", help="only N mutants, evenly spread")
    parser.add_argument("--equivalent", action="store_true", help="only those of the list")
    parser.add_argument("file", nargs="*", help="files of autoip/core, e.g. acd.py; none: all")
    args = parser.parse_args()
    every = sorted(CORE.glob("*.py"))
    files = [file for file in every if not args.file or file.name in args.file]
    if len(files) < len(set(args.file)):
        parser.error(f"FILE must be one of {' '.join(file.name for file in every)}")
    if args.jobs < 1 or (args.sample is not None and args.sample < 1):
        parser.error("N must be at least 1")
    start = time.monotonic()
    found = [mutant for file in files for mutant in mutants(file)]
    listed = {
        name for name in listed_equivalent() if name.split()[0] in {file.name for file in files}
    }
    stale = listed - {mutant.name for mutant in found}
    given = [mutant for mutant in found if (mutant.name in listed) is args.equivalent]
    if args.sample and args.sample < len(given):
        given = [given[n * len(given) // args.sample] for n in range(args.sample)]
    _prepare()
    if os.waitpid(_fork(None), 0)[1] != 0:
        print("mutate: the tests fail without a change", file=sys.stderr)
        return 2
    alive = survivors(given, args.jobs, equivalent=args.equivalent)
    killed = len(given) - alive
    for name in sorted(stale):
        print(f"{EQUIVALENT.relative_to(TOP)}: names no mutant: {name}")
    print(
        f"mutate: {len(found)} mutants, {len(listed)} equivalent, {len(given)} tried:"
        f" {killed} killed, {alive} survived; {time.monotonic() - start:.0f} s"
    )
    if args.equivalent:
        return 1 if stale or killed else 0
    return 1 if stale or killed < KILLED_AT_LEAST * len(given) else 0


if __name__ == "__main__":
    sys.exit(main())
