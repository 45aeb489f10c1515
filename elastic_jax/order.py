"""What stands where in a chain of transformations, and which orders are legal.

    base → relaxation* → ( exchange → relaxation*  |  mix )

Relaxations come after the base optimizer, because they hold updates of the parameters; one
exchange (or one mix) makes the workers meet; `absorb`, where there is one, comes last. A
relaxation *before* the base optimizer is allowed, but what it holds are gradients.

An optax chain is a closure, but its state lists its parts in order, and a relaxation's state says
what it is: it has a method `held()` or `lost()`, which reports its own mass, or a class attribute
`role`: `exchange` (averages the updates), `mix` (averages the parameters), `absorb` (sees what will
be applied) or `meter`.
"""

import contextlib
import contextvars
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import optax


class Relaxed(NamedTuple):
    """A relaxation's state found inside an optax state, and the wrappers around it."""

    state: Any
    wrappers: tuple[str, ...]


def relaxed_states(opt_state: optax.OptState) -> Iterator[Relaxed]:
    """Yields every relaxation state inside a nested optax state, outermost first."""

    def walk(node: Any, wrappers: tuple[str, ...]) -> Iterator[Relaxed]:
        if _relaxes(node):
            yield Relaxed(node, wrappers)
        name = type(node).__name__
        inside = (*wrappers, name) if hasattr(node, "_fields") else wrappers
        for child in _children(node):
            yield from walk(child, inside)

    yield from walk(opt_state, ())


def _relaxes(state: Any) -> bool:
    methods = (getattr(state, name, None) for name in ("held", "lost"))
    return any(callable(method) for method in methods) or hasattr(state, "role")


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):  # in the order of a named chain; flattening would sort it
        return list(node.values())
    children = jax.tree.leaves(node, is_leaf=lambda child: child is not node)
    return [] if len(children) == 1 and children[0] is node else children


class Passage(NamedTuple):
    """One relaxation's turn while a chain is traced: the leaves it took and those it returned."""

    taken: list[Any]
    returned: list[Any]
    axes: tuple[str, ...]  # over which it crosses workers, if it does


_passages: contextvars.ContextVar[list[Passage] | None] = contextvars.ContextVar(
    "elastic_jax_passages", default=None
)


def relaxation(
    init: optax.TransformInitFn, update: Callable[..., Any], axes: tuple[str, ...] = ()
) -> optax.GradientTransformationExtraArgs:
    """Makes a transformation that the meter can see past.

    Args:
        init: optax's init function. Its state is a NamedTuple that tells what the relaxation is:
            methods `held()` and `lost()`, a class attribute `role` (see `elastic_jax.order`).
        update: optax's update function, with extra arguments.
        axes: the axes over which it crosses workers; none for a relaxation of one worker.

    Returns:
        The transformation. While a meter traces it, it notes the leaves it took and returned.

    Raises:
        ValueError: from both functions, where it crosses other axes than those that workers stand
            on (see `workers_on`).
    """

    def checked(params):
        check_crossing("the optimizer exchanges", axes)
        return init(params)

    def recorded(updates, state, params=None, **extra_args):
        check_crossing("the optimizer exchanges", axes)
        new_updates, new_state = update(updates, state, params, **extra_args)
        passages = _passages.get()
        if passages is not None:
            passages.append(Passage(jax.tree.leaves(updates), jax.tree.leaves(new_updates), axes))
        return new_updates, new_state

    return optax.GradientTransformationExtraArgs(checked, recorded)


_workers_axes: contextvars.ContextVar[tuple[str, ...] | None] = contextvars.ContextVar(
    "elastic_jax_workers_axes", default=None
)


@contextlib.contextmanager
def workers_on(axes: tuple[str, ...]) -> Iterator[None]:
    """Says on which axes workers stand while the body traces or runs an optimizer."""
    token = _workers_axes.set(axes)
    try:
        yield
    finally:
        _workers_axes.reset(token)


def check_crossing(who: str, axes: tuple[str, ...]) -> None:
    """Refuses what crosses other axes than workers stand on, before JAX finds one unbound.

    Over some of the axes only, workers would not all meet, and their views would drift apart.
    """
    mine = _workers_axes.get()
    if mine is None or not axes or set(axes) == set(mine):
        return
    theirs, ours = (names[0] if len(names) == 1 else names or None for names in (axes, mine))
    raise ValueError(
        f"{who} over axis_name={theirs!r} but the worker step has axis_name={ours!r}, on which "
        "simulate and distribute run it: workers would not all meet; pass "
        f"axis_name={theirs!r} to worker_step" + (f", or {ours!r} there" if ours else "")
    )


@contextlib.contextmanager
def record_passages() -> Iterator[list[Passage]]:
    """Records every relaxation's turn while the body traces or runs an optimizer's update."""
    passages: list[Passage] = []
    outer = _passages.get()
    token = _passages.set(passages)
    try:
        yield passages
    finally:
        _passages.reset(token)
        if outer is not None:
            outer.extend(passages)


def proposals(passages: list[Passage], updates: optax.Updates) -> optax.Updates | None:
    """Traces final updates back to what the base optimizer proposed.

    Args:
        passages: as recorded while `updates` were computed.
        updates: what the whole chain returned.

    Returns:
        The base's proposals `u`, shaped like `updates`; or None if something that is no relaxation
        touched the updates after a relaxation (it then holds gradients, or stands in a wrapper
        whose branches hide it), so that held mass and `u` have no common unit.
    """
    origin: dict[int, Any] = {}
    pending: dict[int, Any] = {}  # returned by a relaxation, not yet seen again
    for passage in passages:
        for taken, returned in zip(passage.taken, passage.returned, strict=True):
            origin[id(returned)] = origin.get(id(taken), taken)
            pending.pop(id(taken), None)
            pending[id(returned)] = returned
    for leaf in jax.tree.leaves(updates):
        pending.pop(id(leaf), None)
    if pending:
        return None
    return jax.tree.map(lambda leaf: origin.get(id(leaf), leaf), updates)


class PassThrough(optax.EmptyState):
    """State of a relaxation whose settings make it the identity."""


def pass_through() -> optax.GradientTransformationExtraArgs:
    """Returns `optax.identity()` with a state of its own.

    The state of `optax.identity()` is that of `optax.scale`, too; `changed_after` tells this one.
    """
    return optax.GradientTransformationExtraArgs(
        lambda params: PassThrough(), lambda updates, state, params=None, **extra: (updates, state)
    )


# They look at the updates and let them be.
_LOOKS_ON = ("PassThrough", "MonitorState", "SnapshotState")


def changed_after(*opt_states: optax.OptState) -> Any:
    """Finds what is no relaxation but stands behind one, so that it changes what was held.

    Args:
        opt_states: of a chain; and of those that its updates go through next.

    Returns:
        The state of the first such transformation; None if there is none. Which leaves a mask lets
        through is not known from a state: behind relaxations that are masked, each by a mask of its
        own, what is masked passes.
    """
    masks = []  # of the relaxations so far
    for state, mask in itertools.chain.from_iterable(map(_parts, opt_states)):
        if _relaxes(state):
            masks.append(mask)
        elif type(state).__name__ not in _LOOKS_ON and any(
            before is None or mask is None or before is mask for before in masks
        ):
            return state
    return None


def _parts(node: Any, mask: Any = None) -> Iterator[tuple[Any, Any]]:
    """Yields the state of every transformation in its turn, and the mask around it."""
    if getattr(node, "role", "") == "meter":
        yield from _parts(node.inner, mask)
        return
    children = [] if _relaxes(node) else _children(node)
    if type(node) is not tuple and not isinstance(node, dict):  # a wrapper, or nothing but arrays
        children = [child for child in children if any(True for _ in relaxed_states(child))]
    if mask is None and type(node).__name__ == "MaskedState":
        mask = node
    if not children:
        yield node, mask
    for child in children:
        yield from _parts(child, mask)


def check_order(opt_state: optax.OptState, workers: int = 1) -> None:
    """Refuses a chain in which mass could be lost or views could drift apart.

    The legal order is `base → relaxation* → (exchange → relaxation* | mix)`, with `absorb` last
    where there is one.

    Args:
        opt_state: a state fresh from the chain's `init`.
        workers: how many workers there are (the size of the named axis).

    Raises:
        ValueError: naming what stands in the wrong place, and where it would be right.
    """
    parts = list(relaxed_states(opt_state))
    roles = [getattr(part.state, "role", "local") for part in parts]
    crossing = [role for role in roles if role in ("exchange", "mix")]
    if len(crossing) > 1:
        raise ValueError(
            f"the chain has {len(crossing)} steps that cross workers ({', '.join(crossing)}): "
            "averaging twice hides drift; keep one exchange, or one mix"
        )
    if workers > 1 and not crossing:
        raise ValueError(
            f"the chain has no exchange but there are {workers} workers: their views would drift "
            "apart; end the chain in all_mean(axis_name), or give error_feedback or compress an "
            "axis_name"
        )
    for last, advice in (
        ("mix", "a mix sets the parameters themselves; put relaxations before it"),
        ("absorb", "absorb must see the update as it is applied; put it last"),
    ):
        if last in roles[:-1]:
            raise ValueError(f"the chain has a relaxation after {last}: {advice}")
    met = False
    for part, role in zip(parts, roles, strict=True):
        met = met or role == "exchange"
        if met and callable(getattr(part.state, "lost", None)) and _draws(part.state):
            raise ValueError(
                "the chain has a relaxation after exchange that draws on each worker apart and "
                "loses what it drops: views would drift apart; put it before the exchange"
            )
        if role in ("exchange", "mix"):
            for wrapper in part.wrappers:
                _refuse_crossing_inside(wrapper, opt_state)
    for node in _nodes(opt_state, "ConditionallyMaskState"):
        inner = node.inner_state
        while isinstance(inner, tuple) and not hasattr(inner, "_fields") and inner:
            inner = inner[0]
        if any(part.state is inner for part in parts):
            raise ValueError(
                "the chain has a relaxation in conditionally_mask, which sets to zero what it does "
                "not pass: that mass would be lost; use conditionally_transform, or put the base "
                "optimizer inside too"
            )


def check_apart(optimizer_state: optax.OptState, server_state: optax.OptState) -> None:
    """Refuses chains of workers that meet only in parameters which a server, or memory, holds.

    Args:
        optimizer_state: fresh from `init` of the chain of one of them.
        server_state: the same, of the server's chain.

    Raises:
        ValueError: where `check_order` does, or for a step that crosses workers, or measures.
    """
    chains = (("optimizer", optimizer_state, "local"), ("server", server_state, "local absorb"))
    for name, state, allowed in chains:
        check_order(state)
        for part in relaxed_states(state):
            role = getattr(part.state, "role", "local")
            if role not in allowed.split():
                raise ValueError(
                    f"{name} holds a step of role {role!r}, which has no place where workers meet "
                    "only in the server's, or shared, parameters: take axis_name out of the "
                    "worker's chain, put absorb last in the server's, and leave the meter out: the "
                    "gap is measured in any case"
                )


def _draws(state: Any) -> bool:
    paths = (path for path, _ in jax.tree_util.tree_flatten_with_path(state)[0])
    return any(getattr(entry, "name", None) == "worker_key" for path in paths for entry in path)


def _nodes(opt_state: optax.OptState, name: str) -> list[Any]:
    """Finds the states of a named type, outermost first."""
    found = jax.tree.leaves(opt_state, is_leaf=lambda node: type(node).__name__ == name)
    return [node for node in found if type(node).__name__ == name]


def _refuse_crossing_inside(wrapper: str, opt_state: optax.OptState) -> None:
    reasons = {
        "MaskedState": "the masked leaves would never be exchanged and views would drift apart",
        "PartitionState": "each part would be exchanged alone, or not at all",
        "ApplyIfFiniteState": "one worker that skips leaves the others waiting for ever",
        "ConditionallyTransformState": "a worker that skips leaves the others waiting for ever",
        "ConditionallyMaskState": "a worker that skips leaves the others waiting for ever",
        "MultiStepsState": "a worker that skips leaves the others waiting for ever",
    }
    if wrapper == "MultiStepsState":
        skips = [node.skip_state for node in _nodes(opt_state, wrapper)]
        if not any(jax.tree.leaves(skip) for skip in skips):
            return  # every worker takes the same steps
    if wrapper in reasons:
        raise ValueError(
            f"the chain exchanges between workers inside {wrapper.removesuffix('State')}: "
            f"{reasons[wrapper]}; wrap the base optimizer alone, and exchange outside"
        )
