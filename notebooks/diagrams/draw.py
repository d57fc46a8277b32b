"""Draws the diagrams of the lessons, as SVG files beside this script: `make diagrams`.

Each has a light card of its own behind it, so that it reads the same on a light page and on a dark one. Its text is
text: it can be searched, selected and read aloud.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

INK, QUIET, CARD, EDGE = "#1f2328", "#57606a", "#f6f8fa", "#c4cbd3"
OPTIMIZER, OPTIMIZEE = ("#dceaf5", "#0072B2"), ("#e9ebee", "#6b7480")  # fill and outline; the first is the LSTM's blue
DROPPED = "#8a94a0"

Point = tuple[float, float]


def words(text: str) -> str:
    """SVG for a line of text: what stands between dollar signs is set as mathematics, with `_{}` and `^{}`."""
    spans, shift = [], 0
    for number, part in enumerate(text.split("$")):
        for raised, lowered, plain in re.findall(r"\^\{(.+?)\}|_\{(.+?)\}|([^_^]+)", part):
            goal = -6 if raised else 4 if lowered else 0
            style = ' font-family="Georgia, serif" font-style="italic"' if number % 2 else ""
            size = "" if plain else ' font-size="72%"'
            spans.append(f'<tspan dy="{goal - shift}"{style}{size}>{escape(raised or lowered or plain)}</tspan>')
            shift = goal
    return "".join(spans)


def label(x: float, y: float, text: str, *, size: int = 15, color: str = INK, anchor: str = "middle") -> str:
    """A line of text whose baseline is at y."""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" text-anchor="{anchor}">{words(text)}</text>'


def box(x: float, y: float, width: float, height: float, lines: Sequence[str], colors: tuple[str, str]) -> str:
    """A box around a centre, with lines of text; the first is a little larger."""
    fill, outline = colors
    corner = f'x="{x - width / 2}" y="{y - height / 2}" width="{width}" height="{height}" rx="8"'
    top = y + 5 - 10 * (len(lines) - 1)
    text = [label(x, top + 20 * row, line, size=14 if row else 16) for row, line in enumerate(lines)]
    return f'<rect {corner} fill="{fill}" stroke="{outline}" stroke-width="1.5"/>' + "".join(text)


def circle(x: float, y: float, text: str, colors: tuple[str, str] = OPTIMIZEE, radius: int = 13) -> str:
    """A small circle with a sign or a name in it."""
    fill, outline = colors
    round_it = f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{fill}" stroke="{outline}" stroke-width="1.5"/>'
    return round_it + label(x, y + 5, text, size=16)


def arrow(*points: Point, color: str = INK, dashed: bool = False, head: bool = True) -> str:
    """A line through these points, with a head at its end."""
    path = " ".join(f"{x},{y}" for x, y in points)
    dashes, marker = (' stroke-dasharray="6 5"' if dashed else ""), (f' marker-end="url(#{color[1:]})"' if head else "")
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"{dashes}{marker}/>'


def svg(width: int, height: int, title: str, description: str, parts: Sequence[str]) -> str:
    """A diagram on its card. The title is shown above it, and the description is for those who cannot see it."""
    heads = "".join(
        f'<marker id="{color[1:]}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7"'
        f' orient="auto"><path d="M0 1L10 5L0 9z" fill="{color}"/></marker>'
        for color in (INK, OPTIMIZER[1], DROPPED)
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        ' font-family="Helvetica, Arial, sans-serif" role="img">',
        f"<title>{escape(re.sub(r'[${}]', '', title))}</title>",
        f"<desc>{escape(description)}</desc>",
        f"<defs>{heads}</defs>",
        f'<rect x="1" y="1" width="{width - 2}" height="{height - 2}" rx="12" fill="{CARD}" stroke="{EDGE}"/>',
        label(24, 34, title, size=17, anchor="start"),
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def loop() -> str:
    """Figure 1: optimizer and optimizee."""
    return svg(
        720,
        250,
        "An optimizer turns gradients into updates",
        "The optimizee hands its gradient to the optimizer. The optimizer answers with an update of the optimizee's "
        "parameters, and keeps a state for the next step.",
        [
            box(170, 145, 200, 84, ["optimizer $m$", "weights $φ$, state $h_{t}$"], OPTIMIZER),
            box(550, 145, 200, 84, ["optimizee $f$", "parameters $θ_{t}$"], OPTIMIZEE),
            arrow((270, 120), (448, 120), color=OPTIMIZER[1]),
            label(360, 108, "update $g_{t}$"),
            arrow((450, 170), (272, 170)),
            label(360, 194, "gradient $∇f(θ_{t})$"),
            arrow((110, 187), (110, 216), (230, 216), (230, 190), color=OPTIMIZER[1]),
            label(170, 234, "next state $h_{t+1}$", size=13),
            arrow((490, 187), (490, 216), (610, 216), (610, 190)),
            label(550, 234, "$θ_{t+1} = θ_{t} + g_{t}$", size=13),
            label(170, 84, "the one that learns, slowly", size=13, color=QUIET),
            label(550, 84, "the one that is minimized", size=13, color=QUIET),
        ],
    )


def graph() -> str:
    """Figure 2: the computational graph, and the edges whose gradient is dropped."""
    parts, names = [], ["t", "t+1", "t+2"]
    for column, now in enumerate(names):
        x, plus = 130 + 230 * column, 245 + 230 * column
        parts += [
            circle(x, 85, f"$f_{{{now}}}$", radius=24),
            arrow((x, 141), (x, 112)),
            circle(x, 167, f"$θ_{{{now}}}$", radius=24),
            arrow((x, 193), (x, 231), color=DROPPED, dashed=True),
            circle(x, 258, f"$∇_{{{now}}}$", radius=24),
            arrow((x, 284), (x, 322)),
            box(x, 349, 70, 50, ["$m$"], OPTIMIZER),
            arrow((x, 410), (x, 377), color=OPTIMIZER[1]),
        ]
        if column < 2:
            parts += [
                arrow((x + 26, 167), (plus - 15, 167)),
                circle(plus, 167, "+"),
                arrow((plus + 15, 167), (x + 204, 167)),
                arrow((x + 37, 336), (plus, 336), (plus, 183)),
                label(plus + 8, 262, f"$g_{{{now}}}$", anchor="start"),
                arrow((x + 37, 362), (x + 193, 362)),
                label(plus + 35, 381, f"$h_{{{names[column + 1]}}}$", size=14),
            ]
    parts += [
        arrow((130, 410), (590, 410), color=OPTIMIZER[1], head=False),
        label(130, 432, "$φ$: the same weights at every step", size=14, anchor="start"),
        label(84, 90, "losses", size=13, color=QUIET, anchor="end"),
        label(84, 172, "parameters", size=13, color=QUIET, anchor="end"),
        label(84, 263, "gradients", size=13, color=QUIET, anchor="end"),
        label(84, 354, "optimizer", size=13, color=QUIET, anchor="end"),
        arrow((24, 466), (64, 466), head=False),
        label(74, 471, "the meta-gradient flows back here", size=14, anchor="start"),
        arrow((350, 466), (390, 466), color=DROPPED, dashed=True, head=False),
        label(400, 471, "dropped: gradients count as constants", size=14, anchor="start"),
    ]
    return svg(
        720,
        490,
        "First-order training drops the dashed edges",
        "Three steps of an optimization. Parameters lead to a loss, and along a dashed edge to a gradient. The "
        "gradient and the state go into the optimizer m, which gives the update and the next state. All solid edges "
        "carry the meta-gradient; the dashed edges from parameters to gradients do not.",
        parts,
    )


def coordinatewise() -> str:
    """Figure 3: one LSTM for each coordinate, with shared weights."""
    parts = []
    for x, name in ((190, "1"), (360, "2"), (600, "n")):
        parts += [
            label(x, 82, f"gradient $∇_{{{name}}}$"),
            arrow((x, 94), (x, 127)),
            box(x, 160, 130, 62, ["LSTM", f"state $h^{{({name})}}$"], OPTIMIZER),
            arrow((x, 193), (x, 226), color=OPTIMIZER[1]),
            label(x, 248, f"update $g_{{{name}}}$"),
        ]
    parts += [
        label(482, 165, "…", size=24),
        arrow((60, 160), (122, 160), color=OPTIMIZER[1]),
        arrow((257, 160), (292, 160), color=OPTIMIZER[1], head=False),
        arrow((427, 160), (462, 160), color=OPTIMIZER[1], head=False),
        arrow((502, 160), (532, 160), color=OPTIMIZER[1], head=False),
        label(40, 166, "$φ$", size=18),
        label(
            24, 282, "Weights are shared, so a few thousand serve any number of parameters.", size=14, anchor="start"
        ),
        label(24, 304, "States are not: each coordinate remembers its own past.", size=14, anchor="start"),
    ]
    return svg(
        720,
        324,
        "The same LSTM runs on every coordinate by itself",
        "Coordinates 1, 2 and so on up to n. The gradient of each goes into an LSTM with a state of its own, which "
        "gives the update of that coordinate. All of these LSTMs share the weights φ.",
        parts,
    )


def lstm_cell() -> str:
    """An LSTM cell and its gates, with the names that the lesson's code has."""
    parts = [
        arrow((40, 95), (217, 95)),
        label(40, 85, "cell $c_{t}$", anchor="start"),
        circle(232, 95, "×"),
        arrow((247, 95), (377, 95)),
        circle(392, 95, "+"),
        arrow((407, 95), (696, 95)),
        label(692, 85, "$c_{t+1}$", anchor="end"),
        circle(392, 165, "×"),
        arrow((392, 150), (392, 111)),
        box(600, 150, 62, 34, ["tanh"], OPTIMIZER),
        arrow((600, 95), (600, 131)),
        circle(600, 215, "×"),
        arrow((600, 168), (600, 199)),
        arrow((615, 215), (696, 215)),
        label(692, 203, "$h_{t+1}$", anchor="end"),
        arrow((645, 215), (645, 272)),
        label(645, 292, "update $g_{t}$"),
        label(653, 252, "$× v$", anchor="start"),
    ]
    gates = ((232, "forget", "σ"), (332, "input", "σ"), (432, "new", "tanh"), (532, "output", "σ"))
    for x, name, squash in gates:
        parts += [
            box(x, 290, 76, 48, [name, squash], OPTIMIZER),
            arrow((x, 350), (x, 316)),
        ]
    parts += [
        arrow((232, 265), (232, 110)),
        arrow((332, 265), (332, 165), (377, 165)),
        arrow((432, 265), (432, 165), (407, 165)),
        arrow((532, 265), (532, 215), (585, 215)),
        arrow((134, 350), (532, 350), head=False),
        label(40, 342, "gradient $∇_{t}$", anchor="start"),
        label(40, 366, "hidden $h_{t}$", anchor="start"),
        label(
            24,
            398,
            "Each gate is a squashed weighted sum of the gradient and the hidden state.",
            size=14,
            anchor="start",
        ),
    ]
    return svg(
        720,
        418,
        "An LSTM cell: forget a little, let a little in, and show some of it",
        "The cell state is multiplied by the forget gate; then the input gate times the new content is added. The "
        "tanh of the result, times the output gate, is the next hidden state, whose weighted sum is the update. "
        "Every gate sees the gradient and the last hidden state.",
        parts,
    )


def windows() -> str:
    """Truncated backpropagation through time."""
    parts = [
        arrow((40, 110), (690, 110)),
        label(40, 82, "forward: 100 steps in one go, $θ$ and $h$ are carried over", size=14, anchor="start"),
    ]
    for window in range(5):
        left, right = 40 + 128 * window, 40 + 128 * (window + 1)
        parts += [
            *(
                f'<circle cx="{left + 128 * (step + 0.5) / 20:.1f}" cy="110" r="2.4" fill="{INK}"/>'
                for step in range(20)
            ),
            arrow((right - 6, 150), (left + 8, 150), color=OPTIMIZER[1]),
            label((left + right) / 2, 172, "meta-gradient", size=13),
            arrow(((left + right) / 2, 182), ((left + right) / 2, 208), color=OPTIMIZER[1]),
            box((left + right) / 2, 226, 104, 32, ["update $φ$"], OPTIMIZER),
        ]
        if window:
            parts.append(arrow((left, 96), (left, 192), color=DROPPED, dashed=True, head=False))
            parts.append(label(left, 90 + 120, "cut", size=13, color=QUIET))
    parts.append(
        label(
            24,
            276,
            "Backward, nothing passes a cut: a step is judged by the rest of its window alone.",
            size=14,
            anchor="start",
        )
    )
    return svg(
        720,
        298,
        "Truncation: forward through all steps, backward through 20 at a time",
        "A line of 100 steps, cut into five windows of 20. Below each window an arrow leads back to its beginning and "
        "stops there; it gives a meta-gradient, and the weights φ are updated once for each window.",
        parts,
    )


DIAGRAMS: dict[str, Callable[[], str]] = {
    "loop": loop,
    "graph": graph,
    "coordinatewise": coordinatewise,
    "lstm-cell": lstm_cell,
    "windows": windows,
}

if __name__ == "__main__":
    for name, draw in DIAGRAMS.items():
        Path(__file__).with_name(f"{name}.svg").write_text(draw(), encoding="utf-8")
