"""Draws `layers.svg`: the packages of cxrjax and what imports what, from the imports themselves.

    python docs/draw_layers.py

Rows are the layers of the contract in `pyproject.toml`. An arrow that follows from others is left
out: what reaches a package by way of a third one needs no arrow of its own.
"""

import pathlib
import tomllib

import grimp

HERE = pathlib.Path(__file__).parent
WIDTH, ROW, BOX, HEIGHT = 760, 62, 92, 30
COMMANDS = "main, predict, export"  # one box
# Middles of boxes as shares of the width, where arrows between others would pass behind them.
COLUMNS = {
  "studies": 0.12, "audit": 0.86, "methods": 0.34, "evals": 0.56, "builders": 0.84, "report": 0.1,
  "data": 0.68, "losses": 0.14, "metrics": 0.36, "models": 0.62, "views": 0.9,
}  # fmt: skip
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1a1a1a; text-anchor: middle }
rect { fill: #e0f2f1; stroke: #00796b }
path { fill: none; stroke: #607d8b; stroke-width: 1.2; marker-end: url(#tip) }
marker path { fill: #607d8b; stroke: none; marker-end: none }
@media (prefers-color-scheme: dark) {
  text { fill: #eceff1 } rect { fill: #12403c; stroke: #4db6ac } path { stroke: #90a4ae }
  marker path { fill: #90a4ae }
}
"""


def layers() -> list[list[str]]:
  """Names of packages, row by row."""
  settings = tomllib.loads((HERE.parent / "pyproject.toml").read_text())
  contract = settings["tool"]["importlinter"]["contracts"][0]
  rows = [[name.strip() for name in row.split("|")] for row in contract["layers"]]
  return [[COMMANDS], *rows[2:]]  # all commands, `__main__` among them, in one box


def edges(rows: list[list[str]]) -> set[tuple[str, str]]:
  """Which package imports which, without what follows from other arrows."""
  graph = grimp.build_graph("cxrjax", cache_dir=None)
  names = {name for row in rows for name in row}

  def package(module: str) -> str:
    name = module.split(".")[1] if "." in module else ""
    return name if name in names else COMMANDS

  found: dict[str, set[str]] = {name: set() for name in names}
  for module in graph.modules - {"cxrjax"}:
    for imported in graph.find_modules_directly_imported_by(module) - {"cxrjax"}:
      if package(module) != package(imported):
        found[package(module)].add(package(imported))

  def reached(start: str, skipped: str) -> set[str]:
    """What `start` reaches without the arrow to `skipped`."""
    seen: set[str] = set()
    waiting = [name for name in found[start] if name != skipped]
    while waiting:
      name = waiting.pop()
      if name not in seen:
        seen.add(name)
        waiting += found[name]
    return seen

  return {(a, b) for a, below in found.items() for b in below if b not in reached(a, b)}


def draw() -> str:
  """The picture."""
  rows = layers()
  place = {}
  for y, row in enumerate(rows):
    for name in row:
      width = max(BOX, 8 * len(name) + 24)
      place[name] = (WIDTH * COLUMNS.get(name, 0.5) - width / 2, 10 + y * ROW, width)
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {ROW * len(rows) - 12}" '
    'role="img" aria-label="Packages of cxrjax in layers; arrows are imports">',
    f"<style>{STYLE}</style>",
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>',
  ]
  for a, b in sorted(edges(rows)):
    (xa, ya, wa), (xb, yb, wb) = place[a], place[b]
    # Arrows leave and end where the other box lies.
    start = xa + wa / 2 + max(-wa / 3, min(wa / 3, (xb + wb / 2 - xa - wa / 2) / 6))
    end = xb + wb / 2 + max(-wb / 3, min(wb / 3, (xa + wa / 2 - xb - wb / 2) / 6))
    top, bottom = ya + HEIGHT, yb - 1
    bend = (bottom - top) / 2
    parts.append(
      f'<path d="M{start:.0f} {top}C{start:.0f} {top + bend:.0f} {end:.0f} {bottom - bend:.0f} '
      f'{end:.0f} {bottom}"/>'
    )
  for name, (x, y, width) in place.items():
    parts.append(f'<rect x="{x:.0f}" y="{y}" width="{width}" height="{HEIGHT}" rx="5"/>')
    parts.append(f'<text x="{x + width / 2:.0f}" y="{y + 20}">{name}</text>')
  return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
  (HERE / "layers.svg").write_text(draw())
