"""A text cut into its patches, as one HTML page: coloured by entropy, the curve and its threshold above the text.

As in the BLT paper's figure of entropy patching (section 2.3). The page needs nothing but itself, runs no script, and
shows any byte: what has no glyph of its own is written in hexadecimal.
"""

import html
import unicodedata

import numpy as np
from jaxtyping import Bool, Float, Integer

from bltjax import vocabulary
from bltjax.config import PatcherConfig

_LEVELS = 24  # steps of the colour scale
_CELL, _SPECIAL, _GAP = 11, 34, 4  # widths in pixels: of a byte, of a special id, before a patch
_CURVE = 46  # height of the curve in pixels
_LONGEST = 16  # bytes that stay on one line together; a longer patch may be continued on the next
_SPECIAL_NAMES = {vocabulary.BOE: "BOE", vocabulary.BOS: "BOS", vocabulary.EOS: "EOS", vocabulary.DELIMITER: "SEP"}
_SYMBOLS = {0x0A: "\u21b5", 0x09: "\u21e5", 0x20: "\u00b7"}

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1c2230; --soft: #667085; --line: #d5dae3; --curve: #2f5fb3;
  --area: #2f5fb31f; --limit: #c2410c; --a: #eef1f6; --b: #dfe6f3;
  --low: #f1f3f7; --high: #fb923c; }
@media (prefers-color-scheme: dark) { :root { --page: #14171d; --ink: #e7eaf0; --soft: #98a2b3; --line: #3a4252;
  --curve: #86aef5; --area: #86aef526; --limit: #fb923c; --a: #222834; --b: #303a4c;
  --low: #20252f; --high: #b4500f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px 24px 64px; max-width: 1160px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 4px; font-size: 21px; line-height: 1.3; overflow-wrap: anywhere; }
p { margin: 4px 0; max-width: 80ch; color: var(--soft); overflow-wrap: anywhere; }
dl { display: flex; flex-wrap: wrap; gap: 8px 32px; margin: 16px 0; }
dt { color: var(--soft); font-size: 13px; } dd { margin: 0; font-size: 18px; font-variant-numeric: tabular-nums; }
.key { display: flex; flex-wrap: wrap; align-items: center; gap: 6px 24px; margin: 0 0 20px; padding: 10px 0;
  border-block: 1px solid var(--line); color: var(--soft); font-size: 13px; }
.key span { display: inline-flex; align-items: center; gap: 8px; }
.scale { width: 150px; height: 14px; border-radius: 3px;
  background: linear-gradient(in oklab to right, var(--low), var(--high)); }
.text { display: flex; flex-wrap: wrap; row-gap: 12px; direction: ltr;
  font: 15px/24px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.text > i { flex-basis: 100%; height: 0; margin-top: -6px; }
.p { flex: none; } .p svg, .key svg { display: block; overflow: visible; }
.t { display: flex; } .s > .t { margin-left: 4px; }
.t b { position: relative; flex: none; width: 11px; height: 24px; font-weight: inherit; text-align: center;
  overflow: hidden; unicode-bidi: isolate; }
.t b:has(u) { overflow: visible; } .t .x { width: 34px; font-size: 12px; color: var(--soft); background: var(--a); }
.s > .t > :first-child { border-radius: 4px 0 0 4px; font-weight: 700; }
.z > .t > :last-child { border-radius: 0 4px 4px 0; }
.s.z > .t > :only-child { border-radius: 4px; }
.t u { position: absolute; z-index: 1; left: 0; text-decoration: none; overflow: hidden; height: 24px; }
.t .y { color: var(--soft); } .t .h { font-size: 9px; line-height: 10px; padding-top: 2px; opacity: 0.85;
  white-space: pre-line; }
.a0 b { background: var(--a); } .a1 b { background: var(--b); }
.c { fill: none; stroke: var(--curve); stroke-width: 1.5; stroke-linejoin: round; } .f { fill: var(--area); }
.m { stroke: var(--line); } .l { stroke: var(--limit); stroke-dasharray: 3 3; } circle { fill: var(--limit); }
"""


def patch_page(
    title: str,
    ids: Integer[np.ndarray, "positions"],
    starts: Bool[np.ndarray, "positions"],
    config: PatcherConfig,
    entropies: Float[np.ndarray, "positions"] | None = None,
    note: str = "",
) -> str:
    """The HTML page of a text and its patches.

    Above each byte stands the entropy that decided whether a patch starts at it: that of the byte before. Without
    entropies the patches are coloured in turn.

    Args:
      title: what the text is.
      ids: byte ids, special ids included.
      starts: which positions start a patch, from any rule.
      config: the patcher that the starts are of, for the description and the line of the threshold.
      entropies: nats; entry t is the uncertainty about byte t + 1.
      note: a sentence about the text, such as which part of it this is.

    Raises:
      ValueError: for ids, starts and entropies of different lengths, ids out of range, or entropies that are not
        finite and non-negative.
    """
    for name, values in (("starts", starts), ("entropies", entropies)):
        if values is not None and len(values) != len(ids):
            raise ValueError(f"{name} has {len(values)} entries, ids has {len(ids)}: pass one for each position.")
    if len(ids) and (ids.min() < 0 or ids.max() >= vocabulary.SIZE):
        raise ValueError(f"ids lie in {ids.min()} .. {ids.max()}: byte ids lie in 0 .. {vocabulary.SIZE - 1}.")
    about = None
    if entropies is not None:
        if not (np.isfinite(entropies).all() and (entropies >= 0).all()):
            raise ValueError("entropies: pass finite, non-negative numbers of nats.")
        about = np.append(np.float32(0), entropies[:-1].astype(np.float32))[: len(ids)]
    patches = max(int(np.count_nonzero(starts)), 1)
    total_bytes = int(np.count_nonzero(ids >= vocabulary.OFFSET))
    facts = {
        "bytes": f"{total_bytes:,}",
        "patches": f"{np.count_nonzero(starts):,}",
        "bytes per patch": f"{total_bytes / patches:.2f}",
        "rule": _describe(config),
    }
    listed = "".join(f"<div><dt>{name}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts.items())
    line = config.threshold if config.rule == "entropy" and config.variant != "monotonic" else None
    top = 1.0 if about is None else max(1.08 * float(about.max(initial=0)), 1.3 * (line or 0), 0.1)
    levels = "".join(
        f".e{i} {{ background: color-mix(in oklab, var(--high) {100 * i / (_LEVELS - 1):.0f}%, var(--low)); }}\n"
        for i in range(_LEVELS)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{html.escape(title)}</title><style>{_STYLE}{levels}</style></head>\n'
        f"<body><h1>{html.escape(title)}</h1>{f'<p>{html.escape(note)}</p>' if note else ''}<dl>{listed}</dl>\n"
        f'{_key(about, line, top)}\n<div class="text">\n{_text(ids, starts, about, line, top)}</div></body></html>\n'
    )


def _describe(config: PatcherConfig) -> str:
    if config.rule == "entropy":
        what = {"global": "entropy", "monotonic": "rise of entropy", "add": "entropy"}[config.variant]
        words = "entropy" if config.threshold is None else f"{what} > {config.threshold:.4g} nats"
        if config.variant == "add":
            words += f", rise > {config.threshold_add:.4g}"
    else:
        words = f"{config.rule}, {config.size} bytes" if config.rule == "strided" else config.rule
    return words if config.max_patch_length is None else f"{words}, at most {config.max_patch_length} bytes"


def _key(about: np.ndarray | None, line: float | None, top: float) -> str:
    hints = (
        "<span>\u00b7 space, \u21b5 newline, \u21e5 tab, stacked digits: a byte in hexadecimal</span>"
        "<span>Point at a byte for its numbers.</span>"
    )
    if about is None:
        return f'<div class="key"><span>Neighbouring patches are tinted in turn.</span>{hints}</div>'
    dashes = (
        ""
        if line is None
        else (
            '<span><svg width="26" height="6"><path class="l" d="M0 3H26"/></svg>'
            f"threshold, {line:.4g} nats; dots exceed it</span>"
        )
    )
    return (
        f'<div class="key"><span>0<span class="scale"></span>{top:.2f} nats: how uncertain each byte was before it '
        'was read</span><span><svg width="26" height="14"><path class="f" d="M0 14V10L8 4L16 9L26 2V14Z"/>'
        '<path class="c" d="M0 10L8 4L16 9L26 2"/></svg>the same as a curve</span>'
        f"{dashes}{hints}</div>"
    )


def _glyphs(ids: np.ndarray, starts: np.ndarray) -> list[tuple[str, str, int]]:
    """For each position its class, its text, and how many positions the text spans (0: covered by one before)."""
    found: list[tuple[str, str, int]] = []
    raw = np.maximum(ids - vocabulary.OFFSET, 0).astype(np.uint8).tobytes()
    t = 0
    while t < len(ids):
        if ids[t] < vocabulary.OFFSET:
            found.append(("x", _SPECIAL_NAMES[int(ids[t])], 1))
            t += 1
            continue
        lead = raw[t]
        length = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        if lead in _SYMBOLS:
            found.append(("y", _SYMBOLS[lead], 1))
        elif 0x20 < lead < 0x7F:
            found.append(("", chr(lead), 1))
        elif lead >= 0x80 and (
            character := _character(ids[t : t + length], raw[t : t + length], starts[t + 1 : t + length])
        ):
            found += [("", character, length)] + [("", "", 0)] * (length - 1)
        else:
            length = 1
            found.append(("h", f"{lead:02X}"[0] + "\n" + f"{lead:02X}"[1], 1))
        t += length
    return found


def _character(ids: np.ndarray, raw: bytes, starts: np.ndarray) -> str:
    """The character that these bytes are, if they are one that can be shown and no patch starts within it."""
    if starts.any() or (ids < vocabulary.OFFSET).any():
        return ""
    try:
        character = raw.decode()
    except UnicodeDecodeError:
        return ""
    if len(character) != 1 or not character.isprintable():
        return ""
    return "\u25cc" + character if unicodedata.category(character).startswith("M") else character


def _text(ids: np.ndarray, starts: np.ndarray, about: np.ndarray | None, line: float | None, top: float) -> str:
    glyphs = _glyphs(ids, starts)
    patch = np.cumsum(starts)
    patch_lengths = np.bincount(patch, minlength=2)
    heights = None if about is None else _CURVE - 2 - (_CURVE - 4) * about / top
    out = []
    first = 0
    newline = 0x0A + vocabulary.OFFSET
    for t in range(len(ids)):
        last = t + 1 == len(ids)
        breaks = ids[t] == newline and not (not last and ids[t + 1] == newline)
        full = t + 1 - first >= _LONGEST and (last or glyphs[t + 1][2] > 0)
        if not (last or starts[t + 1] or breaks or full):
            continue
        cells, centres = [], []
        x = float(_GAP * starts[first])
        for u in range(first, t + 1):
            kind, text, span = glyphs[u]
            width = _SPECIAL if kind == "x" else _CELL
            centres.append(x + width / 2)
            x += width
            shade = "" if about is None or u == 0 else f"e{min(int(_LEVELS * about[u] / top), _LEVELS - 1)}"
            style = " ".join(filter(None, (kind, shade)))
            shown = html.escape(text)
            if span > 1:
                shown = f'<u style="width:{span * _CELL}px">{shown}</u>'
            hint = html.escape(_hint(u, ids, about, int(patch[u]), int(patch_lengths[patch[u]])))
            cells.append(f'<b class="{style}" title="{hint}">{shown}</b>')
        ends = last or starts[t + 1]
        curve = (
            "" if about is None or heights is None else _curve(first, t, x, centres, starts, about, heights, line, top)
        )
        names = ["p"] + ["s"] * bool(starts[first]) + ["z"] * bool(ends) + [f"a{patch[t] % 2}"] * (about is None)
        out.append(f'<span class="{" ".join(names)}">{curve}<span class="t">{"".join(cells)}</span></span>')
        if breaks and not last:
            out.append("<i></i>")
        out.append("\n")
        first = t + 1
    return "".join(out)


def _hint(t: int, ids: np.ndarray, about: np.ndarray | None, patch: int, length: int) -> str:
    value = int(ids[t])
    what = _SPECIAL_NAMES.get(value) or f"byte 0x{value - vocabulary.OFFSET:02X}"
    entropy = "" if about is None or t == 0 else f"\nuncertainty {about[t]:.3f} nats"
    return f"position {t}: {what}{entropy}\npatch {patch - 1}, {length} long"


def _curve(
    first: int,
    last: int,
    width: float,
    centres: list[float],
    starts: np.ndarray,
    about: np.ndarray,
    heights: np.ndarray,
    line: float | None,
    top: float,
) -> str:
    """The piece of the curve above positions first .. last; it meets its neighbours where they touch."""
    marks = f'<path class="m" d="M{_GAP / 2:.0f} 0V{_CURVE}"/>' if starts[first] else ""
    if line is not None:
        level = _CURVE - 2 - (_CURVE - 4) * line / top
        marks += f'<path class="l" d="M0 {level:.1f}H{width:.1f}"/>'
        marks += "".join(
            f'<circle cx="{x:.1f}" cy="{heights[u]:.1f}" r="2"/>'
            for u, x in zip(range(first, last + 1), centres, strict=True)
            if u and about[u] > line
        )
    if first:  # nothing was said about the first position
        points = list(zip(centres, heights[first : last + 1].tolist(), strict=True))
        if first > 1:
            share = centres[0] / (centres[0] + _CELL / 2)
            points.insert(0, (0.0, float(heights[first] + share * (heights[first - 1] - heights[first]))))
        if last + 1 < len(heights):
            right = width - centres[-1]
            share = right / (right + _GAP * starts[last + 1] + _CELL / 2)
            points.append((width, float(heights[last] + share * (heights[last + 1] - heights[last]))))
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        area = f"M{points[0][0]:.1f} {_CURVE}L{path}L{points[-1][0]:.1f} {_CURVE}Z"
        marks = f'<path class="f" d="{area}"/><path class="c" d="M{path}"/>{marks}'
    return f'<svg width="{width:.0f}" height="{_CURVE}">{marks}</svg>'
