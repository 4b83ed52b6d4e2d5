"""A plan as one SVG: buffers as bars, cut into slices, and the steps of each wave between them.

Heights are proportional to channels. The picture needs nothing else, and follows the reader's
colour scheme, light or dark.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from inception_fused.plan import IN, OUT, Plan, Slice, Step

_STYLE = """
text { font: 11px system-ui, sans-serif; fill: var(--ink); }
.title { font-size: 14px; font-weight: 600; }
.small { font-size: 9.5px; fill: var(--faint); }
.bar { fill: var(--bar); stroke: var(--ink); stroke-width: 1; }
.cut { stroke: var(--ink); stroke-width: 0.7; }
.edge { fill: none; stroke-width: 1.3; opacity: 0.75; }
.step { stroke-width: 1.3; fill: var(--paper); }
svg { --ink: #1f2a37; --faint: #5b6673; --paper: #ffffff; --bar: #e6ebf1; }
svg { background: var(--paper); }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e5e9ef; --faint: #a3adba; --paper: #14181d; --bar: #2a323c; }
}
"""
_COLOURS = ("#c8504f", "#3a86b7", "#4f9d69", "#b5832f", "#8664b3", "#4b9c9c")
"""Of the steps in turn; each is readable on both backgrounds."""

_BAR, _STEP, _GAP = 22, 150, 70  # widths
_TOP, _LEAST, _HIGH, _BETWEEN = 74, 54, 420, 14  # of the steps; _HIGH: of the largest buffer


@dataclass(frozen=True)
class _Bar:
    """Where a buffer is drawn; ``scale`` is pixels per channel."""

    x: float
    y: float
    scale: float

    def middle(self, part: Slice) -> float:
        return self.y + self.scale * (part.offset + part.channels / 2)


def svg(
    plan: Plan,
    title: str,
    batch: int,
    height: int,
    width: int,
    itemsize: int = 4,
    notes: dict[int, str] | None = None,
) -> str:
    """The picture of a plan.

    Args:
        batch, height, width: of its input, in images and pixels.
        itemsize: bytes of an element.
        notes: a line for a step by its number, such as what it takes.
    """
    sizes = plan.sizes(height, width)
    scale = _HIGH / max(plan.buffers)
    columns = _columns(plan)
    bars: dict[int, _Bar] = {}
    boxes: dict[int, tuple[float, float, float]] = {}  # x, y, height by step
    x, lowest = 24.0, 0.0
    for buffers, steps in columns:
        y = float(_TOP)
        for buffer in buffers:
            bars[buffer] = _Bar(x, y, scale)
            y += plan.buffers[buffer] * scale + 52
            lowest = max(lowest, y)
        x += (_BAR + _GAP) if buffers else 0
        y = float(_TOP)
        for number in steps:
            tall = float(_LEAST + 13 * max(0, len(plan.steps[number].dst) - 1))
            boxes[number] = (x, y, tall)
            y += tall + _BETWEEN
            lowest = max(lowest, y)
        x += (_STEP + _GAP) if steps else 0
    body = []
    for number, step in enumerate(plan.steps):
        body += _edges(step, boxes[number], bars, _COLOURS[number % len(_COLOURS)])
    for buffer, bar in bars.items():
        pixels = sizes[buffer][0] * sizes[buffer][1]
        size = batch * pixels * plan.buffers[buffer] * itemsize
        body += _bar(plan, buffer, bar, f"{sizes[buffer][0]}x{sizes[buffer][1]}, {_bytes(size)}")
    for number, step in enumerate(plan.steps):
        note = (notes or {}).get(number, "")
        body += _box(number, step, boxes[number], _COLOURS[number % len(_COLOURS)], note)
    body += _heads(columns, plan, boxes)
    total = sum(batch * h * w * c * itemsize for (h, w), c in zip(sizes, plan.buffers, strict=True))
    head = (
        f"{title}: {len(plan.steps)} steps in {len(plan.waves)} waves, buffers of {_bytes(total)}"
    )
    wide, tall = x, lowest + 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.0f} {tall:.0f}" '
        f'width="{wide:.0f}" height="{tall:.0f}" role="img">\n<title>{escape(head)}</title>\n'
        f"<style>{_STYLE}</style>\n"
        f'<text class="title" x="24" y="26">{escape(head)}</text>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _columns(plan: Plan) -> list[tuple[list[int], list[int]]]:
    """From left to right: the buffers that are written before a wave, and the wave's steps."""
    numbers = {id(step): number for number, step in enumerate(plan.steps)}
    columns = [([IN], [numbers[id(s)] for s in plan.waves[0]])]
    placed = {IN, OUT}
    for wave, steps in enumerate(plan.waves[:-1]):
        written = {d.slice.buffer for s in steps for d in s.dst} - placed
        placed |= written
        columns.append((sorted(written), [numbers[id(s)] for s in plan.waves[wave + 1]]))
    last = {d.slice.buffer for s in plan.waves[-1] for d in s.dst} - placed
    columns.append(([*sorted(last), OUT], []))
    return columns


def _heads(
    columns: list[tuple[list[int], list[int]]],
    plan: Plan,
    boxes: dict[int, tuple[float, float, float]],
) -> list[str]:
    return [
        f'<text class="small" x="{boxes[steps[0]][0]:.0f}" y="{_TOP - 12}">'
        f"wave {plan.steps[steps[0]].wave}</text>"
        for _, steps in columns
        if steps
    ]


def _edges(
    step: Step, box: tuple[float, float, float], bars: dict[int, _Bar], colour: str
) -> list[str]:
    x, y, tall = box
    source = bars[step.src.buffer]
    lines = [_curve(source.x + _BAR, source.middle(step.src), x, y + tall / 2, colour)]
    for i, d in enumerate(step.dst):
        start = y + tall * (i + 1) / (len(step.dst) + 1)
        target = bars[d.slice.buffer]
        lines.append(_curve(x + _STEP, start, target.x, target.middle(d.slice), colour))
    return lines


def _curve(x: float, y: float, to_x: float, to_y: float, colour: str) -> str:
    bend = max(20.0, abs(to_x - x) / 2)
    points = ((x, y), (x + bend, y), (to_x - bend, to_y), (to_x, to_y))
    first, *others = (f"{a:.1f},{b:.1f}" for a, b in points)
    return f'<path class="edge" stroke="{colour}" d="M{first} C{" ".join(others)}"/>'


def _bar(plan: Plan, buffer: int, bar: _Bar, size: str) -> list[str]:
    """The bar with a line and a label at the start of every slice that is written or read."""
    name = {IN: "IN", OUT: "OUT"}.get(buffer, f"SCRATCH {buffer}")
    channels = plan.buffers[buffer]
    tall = channels * bar.scale
    lines = [
        f'<rect class="bar" x="{bar.x:.1f}" y="{bar.y:.1f}" width="{_BAR}" height="{tall:.1f}"/>'
    ]
    parts = {step.src for step in plan.steps} | {d.slice for step in plan.steps for d in step.dst}
    offsets = sorted({0, *(part.offset for part in parts if part.buffer == buffer)})
    shown = -20.0
    for offset in offsets:
        y = bar.y + offset * bar.scale
        if offset:
            lines.append(
                f'<line class="cut" x1="{bar.x:.1f}" x2="{bar.x + _BAR:.1f}" y1="{y:.1f}" '
                f'y2="{y:.1f}"/>'
            )
        if y >= shown + 10:  # labels that do not lie on each other
            lines.append(
                f'<text class="small" x="{bar.x + _BAR + 3:.1f}" y="{y + 9:.1f}">{offset}</text>'
            )
            shown = y
    below = bar.y + tall
    lines.append(f'<text x="{bar.x:.1f}" y="{below + 15:.1f}">{name}, {channels} ch</text>')
    lines.append(f'<text class="small" x="{bar.x:.1f}" y="{below + 28:.1f}">{escape(size)}</text>')
    return lines


def _box(
    number: int, step: Step, box: tuple[float, float, float], colour: str, note: str
) -> list[str]:
    x, y, tall = box
    lines = [
        f'<rect class="step" x="{x:.1f}" y="{y:.1f}" width="{_STEP}" height="{tall:.1f}" rx="5" '
        f'stroke="{colour}"/>',
        f'<text x="{x + 8:.1f}" y="{y + 16:.1f}">{escape(f"{number}: {what(step)}")}</text>',
        f'<text class="small" x="{x + 8:.1f}" y="{y + 30:.1f}">{escape(_slices(step))}</text>',
    ]
    if note:
        lines.append(f'<text class="small" x="{x + 8:.1f}" y="{y + 44:.1f}">{escape(note)}</text>')
    return lines


def what(step: Step) -> str:
    """A step in a few words: pool folded in, kernel, stride."""
    name = step.kind.name.lower().replace("_", " ")
    rows, columns = step.window.kernel
    text = f"{rows}x{columns}" if step.kind.has_weight else name
    if step.kind.is_pool:
        text += f" {rows}x{columns}"
    if step.window.stride != (1, 1):
        text += f" stride {step.window.stride[0]}"
    if step.pre:
        text = f"{step.pre.kind.name.lower().replace('_', ' ')} + {text}"
    return text


def _slices(step: Step) -> str:
    """The channels that it reads and writes, short enough for its box."""
    text = f"{step.src.channels} to {'+'.join(str(d.slice.channels) for d in step.dst)} channels"
    if len(text) > 27:
        text = f"{step.src.channels} to {step.out_channels} channels, {len(step.dst)} slices"
    return text


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"
