"""Hypothesis strategies: random specs of every kind of branch, small enough to run."""

from __future__ import annotations

from hypothesis import strategies as st

from inception_fused.spec import Activation, Branch, Fork, Kind, Spec, Stage

channels = st.integers(1, 7)
kernels = st.sampled_from([1, 3, 5, (1, 3), (3, 1)])
activations = st.sampled_from(Activation)

convolutions = st.builds(Stage.conv, channels, kernels, activation=activations)
pools = st.builds(
    lambda kind, kernel: Stage.pool(kind, kernel, padding=kernel // 2),
    st.sampled_from([Kind.MAXPOOL, Kind.AVGPOOL]),
    st.sampled_from([1, 3, 5]),
)
branches = st.lists(st.one_of(convolutions, pools), min_size=1, max_size=4).map(tuple)

# What follows the common stages of a fork; a fork of a fork now and then.
ends = st.recursive(
    branches,
    lambda inner: st.builds(
        lambda stages, forked: (*stages, Fork(tuple(forked))),
        branches,
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=4,
)

# What ends every branch of a module that halves the image (as in later Inception networks).
halvings = st.one_of(
    st.builds(lambda c, a: Stage.conv(c, 3, stride=2, activation=a), channels, activations),
    st.builds(lambda k: Stage.pool(k, 3, stride=2), st.sampled_from([Kind.MAXPOOL, Kind.AVGPOOL])),
)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """1 to 5 branches, some forked; all ways through keep the image's size, or all halve it."""
    halve = draw(st.booleans())
    found: list[Branch] = []
    for branch in draw(st.lists(ends, min_size=1, max_size=5)):
        if halve:
            stages = sum(isinstance(item, Stage) for item in branch)
            place = draw(st.integers(0, stages))
            branch = (*branch[:place], draw(halvings), *branch[place:])
        found.append(branch)
    return Spec(draw(channels), tuple(found))
