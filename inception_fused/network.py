"""From the record of a network's forward to one spec: layers and Inception modules in turn."""

from __future__ import annotations

from .match import Match, chains_of, check_worthwhile, is_relu, match_chain, step_back
from .spec import Fork, Spec
from .trace import Refused, Trace, Value


def match_network(trace: Trace) -> Match:
    """Matches a forward that is one chain from its input to its output.

    Its links are convolutions, batch norms, ReLUs, pools, local response normalisations and
    concatenated branches, and at the end an average over the image and linear layers.

    Raises:
        Refused: with the reason, if it is anything else or has no Inception module.
    """
    if trace.refused:
        raise Refused(trace.refused)
    if not isinstance(trace.output, Value):
        raise Refused("its forward does not return one tensor")
    items, sources = match_chain(_links(trace.output, trace.input))
    for item in items:
        if isinstance(item, Fork):
            check_worthwhile(item.branches)
    if any(s.norm is not None and s.norm.batch for s in sources):
        raise Refused("a batch norm uses the statistics of the batch")
    if not any(isinstance(item, Fork) for item in items):
        raise Refused("it concatenates nothing")
    if len(items) == 1:
        raise Refused("it has nothing around its one Inception module")
    spec = Spec(trace.input.shape[1], (items,))
    return Match(spec, tuple(sources), flat=len(trace.output.shape) == 2)


def _links(output: Value, source: Value) -> list[Value]:
    """The operators from the source to the output; ``fork`` (chains,) for a concatenation."""
    order = _order(output, source)
    links: list[Value] = []  # the last one first
    value = output
    while value is not source:
        if value not in order:
            raise Refused("its output does not come from its input alone")
        if value.op == "cat":
            relu = False
            while links and is_relu(links[-1]):
                relu = bool(links.pop())
            joint = _joint(value, order)
            links.append(Value("fork", (chains_of(value, joint, relu),)))
            value = joint
            continue
        found, value = step_back(value)
        if found is not None:
            links.append(found)
    return links[::-1]


def _order(output: Value, source: Value) -> dict[Value, int]:
    """Every value between the source and the output, numbered so that arguments come first."""
    order = {source: 0}
    state: dict[Value, bool] = {}  # False while its arguments are looked at
    stack = [output]
    while stack:
        value = stack[-1]
        if value in order or state.get(value):
            stack.pop()
        elif value not in state:
            state[value] = False
            stack += _arguments(value)
        else:
            state[value] = True
            if any(a in order for a in _arguments(value)):
                order[value] = len(order)
            stack.pop()
    return order


def _arguments(value: Value) -> list[Value]:
    flat = (a for arg in value.args for a in (arg if isinstance(arg, (list, tuple)) else (arg,)))
    return [a for a in flat if isinstance(a, Value)]


def _joint(cat: Value, order: dict[Value, int]) -> Value:
    """The nearest value that all concatenated ones come from."""
    frontier = {a for a in _arguments(cat) if a in order}
    while len(frontier) > 1:
        last = max(frontier, key=order.__getitem__)
        frontier.remove(last)
        frontier.update(a for a in _arguments(last) if a in order)
    return frontier.pop()
