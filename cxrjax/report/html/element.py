"""Builds HTML and SVG; all strings are escaped unless they were built here."""

from __future__ import annotations

import html
from typing import Any

from cxrjax.core.text import escape


class Html(str):
  """Finished markup; every other string is escaped when it is inserted."""


def el(name: str, *children: Any, **attributes: Any) -> Html:
  """An element: `el("td", "a < b", cls="num")` is `<td class="num">a &lt; b</td>`.

  Args:
    name: of the element, HTML or SVG.
    *children: `Html`, text, numbers, or sequences of them; None is left out.
    **attributes: `cls` stands for `class`, `_` for `-`; None and False are left out, True gives
      the bare attribute.
  """
  words = [name]
  for key, value in attributes.items():
    if value is None or value is False:
      continue
    key = "class" if key == "cls" else key.rstrip("_").replace("_", "-")
    key = {"viewbox": "viewBox"}.get(key, key)
    words.append(key if value is True else f'{key}="{_escape(value)}"')
  head = " ".join(words)
  if name in ("img", "meta", "br", "col", "hr"):
    return Html(f"<{head}>")
  return Html(f"<{head}>{join(children)}</{name}>")


def join(children: Any) -> Html:
  """Concatenates the children of an element."""
  if children is None:
    return Html("")
  if isinstance(children, Html):
    return children
  if isinstance(children, list | tuple) or hasattr(children, "__next__"):
    return Html("".join(join(child) for child in children))
  return Html(_escape(children))


def _escape(value: Any) -> str:
  """Escapes text for markup; invisible characters (in file names) are written out."""
  return html.escape(escape(str(value), keep="\n\t"))
