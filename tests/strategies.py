"""Hypothesis strategies: random specs of every kind of branch, small enough to run."""

from __future__ import annotations

from hypothesis import strategies as st

from inception_fused.spec import Activation, Branch, Fork, Kind, Spec, Stage

channels = st.integers(1, 7)
kernels = st.sampled_from([1, 3, 5, (1, 3), (3, 1)])
activations = st.sampled_from(Activation)

convolutions = st.builds(Stage.conv, channels, kernels, activation=activations)
pool_kinds = st.sampled_from([Kind.MAXPOOL, Kind.AVGPOOL, Kind.AVGPOOL_INSIDE])
pools = st.builds(
    lambda kind, kernel: Stage.pool(kind, kernel, padding=kernel // 2),
    pool_kinds,
    st.sampled_from([1, 3, 5]),
)
norms = st.builds(
    Stage.local_response_norm,
    st.integers(1, 6),
    st.sampled_from([1e-4, 1.0]),
    st.sampled_from([0.75, 0.5]),
    st.sampled_from([1.0, 2.0]),
)
stages = st.one_of(convolutions, pools, convolutions, pools, norms)
branches = st.lists(stages, min_size=1, max_size=4).map(tuple)

# What follows the common stages of a fork; a fork of a fork now and then, with stages behind it.
ends = st.recursive(
    branches,
    lambda inner: st.builds(
        lambda before, forked, behind: (*before, Fork(tuple(forked)), *behind),
        branches,
        st.lists(inner, min_size=1, max_size=3),
        st.lists(stages, max_size=2),
    ),
    max_leaves=4,
)

# What ends every branch of a module that halves the image (as in later Inception networks).
halvings = st.one_of(
    st.builds(lambda c, a: Stage.conv(c, 3, stride=2, activation=a), channels, activations),
    st.builds(lambda k: Stage.pool(k, 3, stride=2), pool_kinds),
    # The same size by another rule.
    st.builds(lambda k: Stage.pool(k, 2, stride=2, padding=0, ceil_mode=True), pool_kinds),
)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """1 to 5 branches, some forked; all ways through keep the image's size, or all halve it."""
    halve = draw(st.booleans())
    found: list[Branch] = []
    for branch in draw(st.lists(ends, min_size=1, max_size=5)):
        if halve:
            place = draw(st.integers(0, len(branch)))
            branch = (*branch[:place], draw(halvings), *branch[place:])
        found.append(branch)
    return Spec(draw(channels), tuple(found))
