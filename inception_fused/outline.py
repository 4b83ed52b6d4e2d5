"""Inception code inside a larger forward: moved, part by part, into modules of its own.

A forward is traced with ``torch.fx``, every child a leaf. A part ends in a concatenation (perhaps
with a ReLU behind) and starts at the last value that all its branches come from. The rest of the
forward stays the code that it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from .match import is_relu
from .network import match_network
from .trace import (
    FUSION,
    Recorder,
    Refused,
    State,
    Trace,
    Value,
    all_modules,
    evaluating,
    names_in_code,
    originals,
    places,
    quiet,
    settings,
)

Forward = Callable[..., Any]

_MODES = frozenset({"no_grad", "enable_grad", "inference_mode", "set_grad_enabled", "autocast"})


class Region(nn.Module):
    """A part of the forward of another module, whose children it shares; one tensor in and out.

    ``place`` is the name of the part in the other module.
    """

    place: str


class Site:
    """Where a part was found: ``region`` computes the node ``output`` from the node ``source``.

    ``cat`` is the concatenation, or the output of a network, ``channels`` are those of the source,
    ``shape`` is that of the owner's input.
    """

    def __init__(
        self,
        owner: nn.Module,
        source: fx.Node,
        nodes: set[fx.Node],
        cat: fx.Node,
        output: fx.Node,
        channels: int,
        shape: tuple[int, int, int, int],
    ) -> None:
        self.channels = channels
        self.source = source
        self.nodes = nodes
        self.cat = cat
        self.output = output
        self.shape = shape
        self.region = _region(self, owner)

    @property
    def name(self) -> str:
        return self.output.name


class Outline:
    """What an outlined module knows: its forward with the regions called in it.

    Calling it gives the output, or None if the original forward must run. ``shape`` is that of an
    input which it is known to take. ``network``: its one region is not an Inception module, but a
    network around fused ones.
    """

    def __init__(
        self,
        owner: nn.Module,
        forward: Forward,
        regions: Sequence[Region],
        shape: tuple[int, int, int, int],
        network: bool,
    ) -> None:
        self.network = network
        self.owner = owner
        self.shape = shape
        self.regions = list(regions)
        self._forward = forward
        self._children = dict(owner._modules)
        self._settings = [(s.name, s.value) for s in settings([owner])]
        self._name_regions()

    def _name_regions(self) -> None:
        for i, region in enumerate(self.regions):
            self.__dict__[f"region{i}"] = region

    def __deepcopy__(self, memo: dict[int, Any]) -> Outline:
        new = object.__new__(Outline)
        new.owner, new.regions, new._children = copy.deepcopy(
            (self.owner, self.regions, self._children), memo
        )
        new._forward, new._settings, new.shape = self._forward, self._settings, self.shape
        new.network = self.network
        new._name_regions()
        return new

    def __call__(self, x: Any) -> Any:
        reason = self.reason()
        if reason is None and torch._C._get_tracing_state() is not None:
            reason = "torch.jit.trace is recording"
        if reason is None and isinstance(x, Tensor):
            return self._forward(self.owner, x)
        if not torch.compiler.is_compiling():
            for region in self.regions:
                region.__dict__[FUSION].leave(reason or f"the input is a {type(x).__name__}")
        return None

    def drop(self) -> None:
        """Makes every region read its weights again."""
        for region in self.regions:
            if (fusion := region.__dict__.get(FUSION)) is not None:
                fusion.drop()

    def run(self, x: Tensor) -> Any:
        """The output of the rewritten forward of an owner that is not swapped yet."""
        self.owner.__dict__[FUSION] = self
        try:
            return self._forward(self.owner, x)
        finally:
            del self.owner.__dict__[FUSION]

    def reason(self) -> str | None:
        """Why the original must run now; None if the rewritten forward may."""
        return "it is in training mode" if self.owner.training else self._changed()

    def changed(self) -> str | None:
        """What was changed, here or in a region, so that it must be fused again, or None."""
        fusions = (region.__dict__.get(FUSION) for region in self.regions)
        return self._changed() or next((r for f in fusions if f and (r := f.changed())), None)

    def _changed(self) -> str | None:
        children = self.owner._modules
        if len(children) != len(self._children) or any(
            children.get(name) is not child for name, child in self._children.items()
        ):
            return "a module inside was replaced; fuse it again"
        if any(getattr(self.owner, name, None) != value for name, value in self._settings):
            return "a setting of it was changed; fuse it again"
        return None


def sites(owner: nn.Module, shapes: Sequence[tuple[int, int, int, int]]) -> list[Site]:
    """The parts of the module's own code that end in a concatenation, the last one first.

    One may lie inside another: that of a concatenation alone in that with the ReLU behind it, which
    comes first.

    Args:
        shapes: (N, C, H, W) of inputs to try, one after the other.

    Raises:
        Refused: the forward cannot be rewritten.
    """
    graph = _graph(owner)
    run = _run(owner, graph, shapes)
    found: list[Site] = []
    for node in reversed(graph.nodes):
        value = run.values.get(node)
        if value is None or value.op != "cat":
            continue
        if any(run.values.get(n) is value for n in node.all_input_nodes):
            continue  # only hands it on
        for output in dict.fromkeys((_with_relu(node, run), node)):
            part = _part(node, output, graph)
            if part is None or run.overwritten(part[0]):
                continue
            source, nodes = part
            size = run.values[source].shape
            if len(nodes) > 1 and len(size) == 4:
                found.append(Site(owner, source, nodes, node, output, size[1], run.shape))
    return found


def network_site(
    owner: nn.Module, shapes: Sequence[tuple[int, int, int, int]]
) -> tuple[Site, tuple[int, ...]] | None:
    """The first and largest part of the module's own code that is a network of Inception modules.

    Args:
        shapes: (N, C, H, W) of inputs to try, one after the other.

    Returns:
        The part and the shape of its input for the first of the shapes that is possible; None if
        there is no such part.

    Raises:
        Refused: the forward cannot be rewritten.
    """
    graph = _graph(owner)
    run = _run(owner, graph, shapes)
    known = [n for n in graph.nodes if n.op != "output" and not run.overwritten(n)]
    for source in known:
        value = run.values[source]
        if len(value.shape) != 4 or value.op in ("parameter", "constant"):
            continue
        for output in reversed(known):
            nodes = _between(source, output)
            if nodes and run.is_network(source, output):
                site = Site(owner, source, nodes, output, output, value.shape[1], run.shape)
                site.region.place = f"{source.name} to {output.name}"
                return site, value.shape
    return None


def _between(source: fx.Node, output: fx.Node) -> set[fx.Node]:
    """The nodes from the one to the other; none if they read, or are read by, any others."""
    nodes: set[fx.Node] = set()
    queue = [output]
    while queue:
        node = queue.pop()
        if node is source or node in nodes:
            continue
        if not node.all_input_nodes:
            return set()
        nodes.add(node)
        queue += node.all_input_nodes
    read = any(u not in nodes for n in nodes - {output} for u in n.users)
    return set() if read else nodes


def outline(owner: nn.Module, chosen: Sequence[Site], network: bool = False) -> Outline:
    """The outline of a module with these sites, first one first, from one call of :func:`sites`.

    Args:
        network: of the outline.
    """
    graph = chosen[0].output.graph
    calls: dict[fx.Node, fx.Node] = {}
    for i, site in enumerate(chosen):
        source = calls.get(site.source, site.source)
        with graph.inserting_after(site.output):
            call = calls[site.output] = graph.call_module(f"{FUSION}.region{i}", (source,))
        site.output.replace_all_uses_with(call)
        for node in sorted(site.nodes, reverse=True):
            graph.erase_node(node)
    regions = [s.region for s in chosen]
    return Outline(owner, _compiled(graph), regions, chosen[0].shape, network)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _graph(owner: nn.Module) -> fx.Graph:
    forward = type(owner).forward
    if hasattr(forward, "__wrapped__") or names_in_code(type(owner)) & _MODES:
        raise Refused("its forward changes the grad mode or autocast")
    state = State([owner])
    try:
        with evaluating([owner]), originals([owner]):
            graph = _Tracer().trace(owner)
    except Exception as error:
        text = str(error).strip().partition("\n")[0]
        raise Refused(f"its forward cannot be traced symbolically: {text[:200]}") from error
    finally:
        changed = state.restore()
    if changed is not None:
        raise Refused(f"its forward stores state in {changed!r}")
    if sum(n.op == "placeholder" for n in graph.nodes) != 1:
        raise Refused("its forward takes more than one input")
    return graph


class _Run(fx.Interpreter):
    """Runs a graph under a recorder and keeps the value of every node."""

    def __init__(
        self,
        owner: nn.Module,
        graph: fx.Graph,
        recorder: Recorder,
        shape: tuple[int, int, int, int],
    ) -> None:
        super().__init__(owner, garbage_collect_values=False, graph=graph)
        self.shape = shape
        self.values: dict[fx.Node, Value] = {}
        self._tensors: dict[fx.Node, Tensor] = {}
        self._recorder = recorder

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self._tensors[n] = result
            self.values[n] = self._recorder.value(result)
        return result

    def overwritten(self, node: fx.Node) -> bool:
        """Whether the node's tensor was written to after the node gave it, or is no tensor."""
        if node not in self._tensors:
            return True
        return self._recorder.value(self._tensors[node]) is not self.values[node]

    def is_network(self, source: fx.Node, output: fx.Node) -> bool:
        """Whether all from the one to the other can be matched as a network."""
        record = Trace(self.values[source], self.values[output], (), self._recorder.refused)
        try:
            match_network(record)
        except Refused:
            return False
        return True


def _run(owner: nn.Module, graph: fx.Graph, shapes: Sequence[tuple[int, int, int, int]]) -> _Run:
    from torch._subclasses.fake_tensor import FakeTensorMode

    modules = all_modules(owner)
    held = [p for p in (*owner.parameters(), *owner.buffers()) if p.is_floating_point()]
    failure: Exception | None = None
    for shape in shapes:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        recorder = Recorder(places(modules))
        run = _Run(owner, graph, recorder, shape)
        state = State(modules)
        try:
            with quiet(), evaluating(modules), originals(modules), torch.no_grad(), mode:
                x = torch.empty(shape, dtype=held[0].dtype, device=held[0].device)
                with recorder:
                    recorder.start(x)
                    run.run(x)
            return run
        except Exception as error:
            failure = failure or error
        finally:
            state.restore()
    text = str(failure).strip().partition("\n")[0]
    raise Refused(f"its forward failed on a probe: {text[:200]}")


def _with_relu(node: fx.Node, run: _Run) -> fx.Node:
    """The ReLU that alone reads the node, if there is one, else the node."""
    if len(node.users) == 1:
        user = next(iter(node.users))
        value = run.values.get(user)
        if value is not None and is_relu(value) and value.args[0] is run.values[node]:
            return user
    return node


def _part(cat: fx.Node, output: fx.Node, graph: fx.Graph) -> tuple[fx.Node, set[fx.Node]] | None:
    """The nearest node that all branches come from, and the nodes from it to the output."""
    order = {n: i for i, n in enumerate(graph.nodes)}
    nodes = {output, cat}
    frontier = set(cat.all_input_nodes)
    while len(frontier) > 1:
        last = max(frontier, key=order.__getitem__)
        if not last.all_input_nodes:
            return None
        frontier.remove(last)
        nodes.add(last)
        frontier |= set(last.all_input_nodes)
    if not frontier or any(u not in nodes for n in nodes - {output} for u in n.users):
        return None
    return frontier.pop(), nodes


def _region(site: Site, owner: nn.Module) -> Region:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {site.source: graph.placeholder("x")}
    children: dict[str, nn.Module] = {}
    for node in site.source.graph.nodes:
        if node in site.nodes:
            made = copies[node] = graph.node_copy(node, copies.__getitem__)
            if node.op == "call_module":
                made.target = name = str(node.target).replace(".", "_")
                children[name] = owner.get_submodule(str(node.target))
    graph.output(copies[site.output])
    kind = type("Region", (Region,), {"forward": _compiled(graph)})
    region: Region = kind().eval()
    region.place = site.name
    for name, child in children.items():
        region._modules[name] = child
    return region


def _compiled(graph: fx.Graph) -> Forward:
    """The graph as a function of the module that it was traced from, and of its inputs."""
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(compile(code.src, "<outlined forward>", "exec"), names)
    forward: Forward = names["forward"]
    return forward
