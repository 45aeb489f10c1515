"""The zoo: systems of the literature, each a composition of a few transformations.

A system is p workers in step, each with a chain (`Parallel`), or p workers that race, with a trace
of who applies when, each worker's chain and the server's (`Single`). The elastic constant B comes
from `theory`; where it proves none, the system says why.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import optax

import elastic_jax as ej
import theory
from elastic_jax import absent, correct, gossip, graphs, links, local, schedulers
from experiments.chains import AXIS, LATE, choco_mix, gossip_mix, tracking_mix

DELAY, CAP, DROP, H, KEEP, BETA, MISSING = 4, 8, 0.2, 4, 0.1, 0.5, 1
TOP, LOW, INT4, INT8 = ej.top_k(KEEP), ej.low_rank(2), ej.quantize(4), ej.quantize(8)
BLOCK = ej.random_k(0.25, unbiased=True)
CRASHES = [(1, 5, None), (2, 9, 20)]  # (worker, step, back)


class Facts(NamedTuple):
    """What B may depend on."""

    M: float  # second moment
    sigma: float  # noise
    L: float  # smoothness
    alpha: float
    p: int
    tau: int  # the trace's longest delay; 0 for parallel steps
    params: Any
    independent: bool = True  # whether workers' gradients differ by independent noise only

    def bound(self, name: str, **values: float) -> float:
        """Returns a proved bound of B at these facts."""
        chosen = theory.bounds()[name]
        L = max(self.L, 1e-9)  # bounds are for a positive one
        known = {"M": self.M, "sigma": self.sigma, "L": L, "alpha": self.alpha, "p": self.p}
        own = {symbol.name for symbol in chosen.parameters}
        wanted = {key: x for key, x in known.items() if vars(theory.symbols)[key].name in own}
        return chosen.at(**{**wanted, **values})


Derived = Callable[[Facts], float | None]


class System(NamedTuple):
    """A system.

    Attributes:
        source: where it comes from.
        chain: `(alpha, seed) -> transformation`: a worker's whole chain.
        bound: its elastic constant B by `theory`; None where that proves none.
        classic: the B of the paper's own technique, where it differs.
        why: what the reader should know: why there is no B, or what B does not say.
        trace: `(p, ticks, seed) -> Trace` for single steps; None for parallel steps.
        server: single steps: `seed -> transformation`, what the server does with messages.
        mean: what B bounds the mean square over: "" for every view at every step, "workers" for
            the workers of one run, "draws" for those of all runs.
        metered: whether its held mass is a distance between parameters.
    """

    source: str
    chain: Callable[[Any, Any], optax.GradientTransformation]
    bound: Derived | None = None
    classic: Derived | None = None
    why: str = ""
    trace: Callable[[int, int, int], ej.Trace] | None = None
    server: Callable[[Any], optax.GradientTransformation] | None = None
    mean: Literal["", "workers", "draws"] = ""
    metered: bool = True


def race(
    assignment: Any = "pure", wait: int = 1, cap: int | None = None
) -> Callable[[int, int, int], ej.Trace]:
    """Returns the race of workers of unequal speed."""

    def draw(p: int, ticks: int, seed: int) -> ej.Trace:
        speeds = [ej.speeds.lognormal(1 + i / p) for i in range(p)]
        return ej.draw_trace(speeds, ticks, seed, assignment=assignment, wait=wait, cap=cap)

    return draw


def sgd(alpha: Any, *relaxations: optax.GradientTransformation) -> Any:
    """Returns SGD and what comes after it."""
    return optax.chain(optax.sgd(alpha), *relaxations)


def _window(more: int = 0) -> Derived:
    return lambda facts: facts.bound("shared_memory", tau=facts.tau + more)


def _window_classic(more: int = 0) -> Derived:
    def bound(facts: Facts) -> float:
        d = sum(leaf.size for leaf in jax.tree.leaves(facts.params))
        return facts.bound("shared_memory.classic", tau=facts.tau + more, d=d)

    return bound


def _none(facts: Facts) -> float:
    return facts.bound("synchronous")


def _between(name: str, **values: float) -> Derived:
    """Returns a B of what workers do not know of each other: 0 for one alone."""
    return lambda facts: facts.bound(name, **values) if facts.p > 1 else 0.0


def _late(steps: int) -> Derived:
    """Returns B of local steps on views that lack any parts of so many updates."""
    return lambda facts: facts.bound("local.late", H=H, tau=steps)


def _mixed(mix: Callable[[Facts], theory.Mix]) -> Derived:
    """Returns B of a mix; 0 where its graph averages all views at every step, or one worker."""
    return lambda facts: theory.Chain(mix(facts), workers=facts.p).constant(facts.M)


ALIKE = "all views are alike, so B = 0; no B says what the lost mass costs"

ZOO: Mapping[str, System] = {
    "synchronous": System(
        "data-parallel SGD",
        lambda alpha, seed: sgd(alpha, ej.all_mean(AXIS)),
        _none,
    ),
    "shared memory, inconsistent reads": System(
        "Recht et al., Hogwild, 2011",
        lambda alpha, seed: sgd(alpha),
        _window(2),
        _window_classic(2),
        trace=race(),
        server=lambda seed: ej.delay(ej.delays.per_coordinate(2), seed=seed),
    ),
    "consistent lock-free memory": System(
        "after Bäckström et al., Leashed-SGD, 2021",
        lambda alpha, seed: sgd(alpha),
        _window(),
        trace=race(),
    ),
    "asynchronous server, pure": System(
        "Islamov et al., AsGrad, 2024; single steps, by updates applied",
        lambda alpha, seed: sgd(alpha),
        _window(),
        trace=race("pure"),
    ),
    "asynchronous server, random": System(
        "Islamov et al., AsGrad, 2024",
        lambda alpha, seed: sgd(alpha),
        _window(),
        trace=race("random"),
    ),
    "asynchronous server, shuffled": System(
        "Islamov et al., AsGrad, 2024",
        lambda alpha, seed: sgd(alpha),
        _window(),
        trace=race("shuffled"),
    ),
    "asynchronous server, waiting": System(
        "Islamov et al., AsGrad, 2024",
        lambda alpha, seed: sgd(alpha),
        _window(),
        trace=race("pure", wait=4),
    ),
    "delay-capped asynchrony": System(
        "Maranjyan et al., Ringmaster ASGD, 2025",
        lambda alpha, seed: sgd(alpha),
        lambda facts: facts.bound("shared_memory", tau=CAP - 1),
        trace=race(cap=CAP),
    ),
    "staleness-adaptive step": System(
        "after Bäckström et al., MindTheStep, 2019",
        lambda alpha, seed: optax.chain(
            correct.by_staleness(correct.inverse(0.5)), optax.sgd(alpha)
        ),
        _window(),
        why="M is that of the gradients as scaled",
        trace=race(),
    ),
    "delay compensation": System(
        "Zheng et al., DC-ASGD, 2017",
        lambda alpha, seed: optax.chain(correct.compensate(0.04), optax.sgd(alpha)),
        _window(),
        why="M is that of the gradients as compensated, which are biased",
        trace=race(),
    ),
    "weight prediction": System(
        "after Chen et al., SpecTrain, 2018",
        lambda alpha, seed: sgd(
            alpha, ej.all_mean(AXIS), ej.delay(DELAY), correct.predict(DELAY, momentum=0.5)
        ),
        lambda facts: 2 * facts.bound("shared_memory", tau=DELAY),
        why="in flight and predicted are τM each, and updates that turn attain the sum",
    ),
    "message passing, bounded delay": System(
        "Nadiradze et al., Elastic Consistency, 2021",
        lambda alpha, seed: sgd(alpha, links.late(AXIS, ej.delays.uniform(0, DELAY), seed=seed)),
        _between("message_passing", tau=DELAY),
    ),
    "message passing, crashes": System(
        "Nadiradze et al., Elastic Consistency, 2021",
        lambda alpha, seed: sgd(alpha, absent.crashes(AXIS, CRASHES, seed=seed)),
        lambda facts: facts.bound("crashes", f=len(CRASHES)),
    ),
    "message passing, lossy links": System(
        "Nadiradze et al., Elastic Consistency, 2021",
        lambda alpha, seed: sgd(alpha, links.lossy(AXIS, DROP, seed=seed)),
        _between("links.independent", q=DROP),
        mean="draws",
    ),
    "partial participation": System(
        "McMahan et al., federated SGD, 2017",
        lambda alpha, seed: sgd(alpha, absent.partial(AXIS, 0.5, seed=seed)),
        _none,
        why=ALIKE,
    ),
    "quantised all-reduce, layer by layer": System(
        "Markov et al., CGX, 2022",
        lambda alpha, seed: sgd(alpha, ej.compress(INT4, axis_name=AXIS, seed=seed)),
        _none,
        why="unbiased: B = 0, and the noise grows from σ² to σ² + ωM²",
    ),
    "top-k with feedback": System(
        "Stich et al., Sparsified SGD with memory, 2018",
        lambda alpha, seed: sgd(alpha, ej.error_feedback(TOP, axis_name=AXIS)),
        lambda facts: facts.bound("feedback", gamma=TOP.gamma(facts.params)),
        lambda facts: facts.bound("feedback.classic", gamma=TOP.gamma(facts.params)),
    ),
    "top-k without feedback": System(
        "the same, without its memory",
        lambda alpha, seed: sgd(alpha, ej.compress(TOP, axis_name=AXIS)),
        _none,
        why=ALIKE,
    ),
    "EF21 with momentum": System(
        "Fatkhullin et al., Momentum provably improves error feedback, 2023",
        lambda alpha, seed: optax.chain(
            optax.ema(0.9, debias=False), optax.sgd(alpha), ej.ef21(TOP, axis_name=AXIS)
        ),
        _none,
        why=ALIKE,
    ),
    "low-rank with feedback": System(
        "Vogels et al., PowerSGD, 2019",
        lambda alpha, seed: sgd(alpha, ej.error_feedback(LOW, axis_name=AXIS, seed=seed)),
        why="a warm-started low-rank map promises no contraction, only that it never expands",
    ),
    "two-level feedback": System(
        "Tang et al., DoubleSqueeze, 2019",
        lambda alpha, seed: sgd(
            alpha, ej.error_feedback(TOP, axis_name=AXIS), ej.error_feedback(TOP)
        ),
        lambda facts: theory.Chain(*[theory.feedback(TOP.gamma(facts.params))] * 2).constant(
            facts.M
        ),
    ),
    "norm-bounded scheduler": System(
        "Nadiradze et al., Elastic Consistency, 2021",
        lambda alpha, seed: sgd(alpha, schedulers.norm_bounded(AXIS, BETA, LATE, seed=seed)),
        lambda facts: facts.bound("scheduler.norm", b=BETA),
    ),
    "variance-bounded scheduler": System(
        "Nadiradze et al., Elastic Consistency, 2021",
        lambda alpha, seed: sgd(
            alpha, schedulers.variance_bounded(AXIS, LATE, missing=MISSING, seed=seed)
        ),
        lambda facts: facts.bound("scheduler.variance", m=MISSING) if facts.independent else None,
        why="B is for workers whose gradients differ by independent noise only",
        mean="draws",
    ),
    "local SGD": System(
        "Stich, Local SGD, 2019",
        lambda alpha, seed: sgd(alpha, local.average(AXIS, H)),
        _between("local.each", H=H),
    ),
    "federated, local asynchrony": System(
        "local steps on views that are late on their own worker",
        lambda alpha, seed: sgd(
            alpha, ej.delay(ej.delays.uniform(0, 2), seed=seed), local.average(AXIS, H)
        ),
        _late(2),
        mean="workers",
    ),
    "DiLoCo": System(
        "Douillard et al., DiLoCo, 2023, with SGD inside and a gain of 1",
        lambda alpha, seed: sgd(alpha, local.diloco(AXIS, H, 0.1, 0.9)),
        _mixed(lambda facts: theory.diloco(H, 0.1, 0.9)),
        mean="workers",
    ),
    "streaming DiLoCo": System(
        "after Douillard et al., Streaming DiLoCo, 2025, likewise",
        lambda alpha, seed: sgd(alpha, local.diloco(AXIS, H, 0.1, 0.9, fragments=2, delay=1)),
        _mixed(lambda facts: theory.diloco(H, 0.1, 0.9, fragments=2, delay=1)),
        mean="workers",
    ),
    "gossip": System(
        "Lian et al., decentralized SGD, 2017",
        lambda alpha, seed: sgd(alpha, gossip.mix(AXIS, graphs.ring())),
        _mixed(lambda facts: gossip_mix(graphs.ring(), facts.p)),
        mean="workers",
    ),
    "gossip with one peer at a time": System(
        "Ying et al., Exponential graph, 2021",
        lambda alpha, seed: sgd(alpha, gossip.mix(AXIS, graphs.one_peer())),
        _mixed(lambda facts: gossip_mix(graphs.one_peer(), facts.p)),
        mean="workers",
    ),
    "quantised gossip": System(
        "Koloskova et al., CHOCO-SGD, 2019",
        lambda alpha, seed: sgd(alpha, gossip.choco(AXIS, graphs.ring(), INT8, seed=seed)),
        _mixed(lambda facts: choco_mix(graphs.ring(), INT8, facts.params, facts.p)),
        mean="draws",
    ),
    "gradient tracking, accelerated gossip": System(
        "Lu, De Sa, DeTAG, 2021",
        lambda alpha, seed: sgd(alpha, gossip.tracking(AXIS, graphs.fast(graphs.ring(), 2))),
        _mixed(lambda facts: tracking_mix(graphs.fast(graphs.ring(), 2), facts.p)),
        mean="workers",
    ),
    "partitioned gradients, shared memory": System(
        "after Kungurtsev et al., PASSM+, 2021",
        lambda alpha, seed: sgd(alpha, ej.compress(BLOCK, seed=seed)),
        lambda facts: facts.bound("shared_memory", tau=facts.tau) / math.sqrt(0.25),
        why="M is that of whole gradients, of which a block is sent four times as large",
        trace=race(),
        mean="draws",
    ),
    "Hogwild inside, averaging outside": System(
        "after Nadiradze et al., LPP-SGD, 2022: late coordinates stand for threads",
        lambda alpha, seed: sgd(
            alpha, ej.delay(ej.delays.per_coordinate(2), seed=seed), local.average(AXIS, H)
        ),
        _late(2),
        mean="workers",
    ),
    "compressed preconditioner": System(
        "after Modoranu et al., EFCP, 2023: a diagonal preconditioner",
        lambda alpha, seed: optax.chain(
            ej.error_feedback(TOP), optax.scale_by_rms(), optax.sgd(alpha), ej.all_mean(AXIS)
        ),
        why="feedback before the base holds gradients, which are no distance between parameters",
        metered=False,
    ),
}
