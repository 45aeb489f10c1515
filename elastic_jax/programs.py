"""What a compiled program says of its collectives: their bytes, and what may run beside them.

A collective costs no time where the machine has something else to do meanwhile: where its operands
are known before a gradient is computed, and that gradient does not need its result. With no delay
there is nothing of the kind, for gradient, exchange and view wait for one another. `delay(1)`
before the exchange makes room in every step: what is exchanged was made a step ago.

    chain(sgd, delay(1), all_mean)     B <= M, and each collective runs beside a gradient

After the exchange it makes room between one step and the next, in a program that unrolls them; but
XLA may join all-reduces of both steps into one, which then waits for both gradients. Whether a
collective does run beside a gradient is up to XLA's scheduler; that it may is a fact of the
program, read here.
"""

import math
import re
from typing import NamedTuple


class Collective(NamedTuple):
    """A collective in a compiled program, and the operations in question around it."""

    kind: str  # all-reduce | all-gather | all-to-all | reduce-scatter | collective-permute | …
    nbytes: int  # that a device hands to it
    needs: int  # operations that it waits for
    delays: int  # operations that wait for it
    beside: int  # operations that do neither: they may run at the same time
    hiding: int  # operations scheduled between its start and its end; 0 where it is synchronous


def collectives(program: str, scope: str = "") -> list[Collective]:
    """Reads a compiled program's collectives, in the order in which they stand.

    Args:
        program: its optimized HLO, scheduled: `jax.jit(step).lower(…).compile().as_text()`.
        scope: which operations are counted around each collective: those (and fusions and loops of
            those) under a `jax.named_scope` of this name, in the same computation; '' for all. A
            loss in a scope stands there with its gradient.

    Returns:
        A `Collective` each. A loop's body counts once, and what stands in it is compared with the
        rest of that body. XLA may join several collectives into one.

    Raises:
        ValueError: for a text that holds no computation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> mesh = jax.make_mesh((1,), ("gpu",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> def step(x, y):
        ...     with jax.named_scope("loss"):
        ...         y = jnp.tanh(y @ y)
        ...     return jax.lax.psum(x, "gpu"), y
        >>> all, own = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("gpu")
        >>> run = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(own, own), out_specs=(all, own)))
        >>> shape = jax.ShapeDtypeStruct((8, 8), jnp.float32)
        >>> (found,) = collectives(run.lower(shape, shape).compile().as_text(), "loss")
        >>> found.kind, found.nbytes, found.needs, found.delays, found.beside > 0
        ('all-reduce', 256, 0, 0, True)
    """
    computations = _computations(program)
    if not computations:
        raise ValueError(
            "program holds no HLO computation; pass jax.jit(step).lower(…).compile().as_text()"
        )
    started = {  # what stands there is counted where it starts
        call
        for block in computations.values()
        for one in block.values()
        for call in one.called
        if one.operation == "async-start"
    }
    return [
        found
        for name, block in computations.items()
        for found in _around(block, computations, scope)
        if name not in started
    ]


# ---- the text ----

_KINDS = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "ragged-all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
)


class _Instruction(NamedTuple):
    name: str
    shape: str  # as written
    operation: str
    operands: list[str]  # names, in the same computation
    earlier: list[str]  # names of others that it is made to wait for
    called: list[str]  # names of computations
    scope: str  # the name that JAX gave it


_Block = dict[str, _Instruction]  # in the order of the schedule


def _computations(program: str) -> dict[str, _Block]:
    found: dict[str, _Block] = {}
    block: _Block | None = None
    for line in program.splitlines():
        if header := re.match(r"(?:ENTRY )?%([\w.-]+) .*\{$", line):
            block = found.setdefault(header[1], {})
        elif line.startswith("}"):
            block = None
        elif block is not None and (match := re.match(r" +(?:ROOT )?%([\w.-]+) = (.*)", line)):
            block[match[1]] = _instruction(match[1], match[2])
    return found


def _instruction(name: str, text: str) -> _Instruction:
    operation = re.search(r" ([a-z][a-z\d-]*)\(", text)
    assert operation is not None, text
    start = end = operation.end()
    depth = 1
    while depth:
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        end += 1
    names = re.compile(r"%([\w.-]+)")
    operands = names.findall(text[start:end])
    attributes = text[end:]
    earlier: list[str] = []
    if after := re.search(r"control-predecessors=\{(.*?)\}", attributes):
        earlier, attributes = names.findall(after[1]), attributes.replace(after[0], "")
    scope = re.search(r'op_name="([^"]*)"', attributes)
    return _Instruction(
        name,
        text[: operation.start()],
        operation[1],
        operands,
        earlier,
        names.findall(attributes),
        scope[1] if scope else "",
    )


def _nbytes(shape: str) -> int:
    total = 0
    for dtype, sizes in re.findall(r"([a-z]+\d*)[a-z\d]*\[([\d,]*)\]", shape):
        bits = int(re.sub(r"\D", "", dtype) or 8)  # pred has none
        total += -(-bits * math.prod(int(n) for n in sizes.split(",") if n) // 8)
    return total


# ---- who waits for whom ----


def _around(block: _Block, computations: dict[str, _Block], scope: str) -> list[Collective]:
    place = {name: i for i, name in enumerate(block)}
    before: list[int] = []  # of each instruction, a bit for each that it waits for
    for one in block.values():
        waits = 0
        for other in (place.get(name, len(before)) for name in one.operands + one.earlier):
            if other < len(before):
                waits |= before[other] | 1 << other
        before.append(waits)
    rows = list(enumerate(block.values()))
    kinds = {i: _kind(one, computations) for i, one in rows}
    counted = [i for i, one in rows if not kinds[i] and _within(one, computations, scope)]
    found = []
    for i, one in rows:
        if kind := kinds[i]:
            needs = sum(before[i] >> j & 1 for j in counted)
            delays = sum(before[j] >> i & 1 for j in counted)
            end = next((j for j, other in rows if _ends(other, one)), i)
            found.append(
                Collective(
                    kind,
                    sum(_nbytes(block[name].shape) for name in one.operands if name in block),
                    needs,
                    delays,
                    len(counted) - needs - delays,
                    sum(i < j < end for j in counted),
                )
            )
    return found


def _kind(one: _Instruction, computations: dict[str, _Block]) -> str | None:
    """The collective that an instruction is, or starts."""
    name = one.operation.removesuffix("-start")
    if name == "async":
        inside = (x.operation for call in one.called for x in computations.get(call, {}).values())
        return next((operation for operation in inside if operation in _KINDS), None)
    return name if name in _KINDS else None


def _ends(other: _Instruction, start: _Instruction) -> bool:
    return other.operation.endswith("-done") and start.name in other.operands


def _within(one: _Instruction, computations: dict[str, _Block], scope: str) -> bool:
    """Whether an instruction, or one in a computation that it calls, stands in a scope."""
    if one.operation.endswith("-done"):
        return False
    if scope in one.scope:
        return True
    inside = (x for call in one.called for x in computations.get(call, {}).values())
    return any(_within(x, computations, scope) for x in inside)
