"""Blocks of a page: tables, notes, folded details and cards."""

from __future__ import annotations

from typing import Any

from cxrjax.report.html import format
from cxrjax.report.html.element import Html, el


def table(columns: Any, rows: Any, cls: str = "results") -> Html:
  """A table that scrolls sideways.

  Args:
    columns: heads, by `column` or `columns`.
    rows: by `row` or `group`.
    cls: class of the table.
  """
  head = el("thead", el("tr", columns))
  return el("div", el("table", head, el("tbody", rows), cls=cls), cls="scroll")


def column(*title: Any, cls: str | None = "num") -> Html:
  """Head of a column, by default one of numbers."""
  return el("th", *title, scope="col", cls=cls)


def columns(names: Any, *titles: Any) -> list[Html]:
  """Heads of a column of names and columns of numbers."""
  return [column(names, cls=None), *map(column, titles)]


def row(title: Any, *cells: Any) -> Html:
  """A row under its title."""
  return el("tr", el("th", title, scope="row"), *cells)


def group(title: Any, span: int) -> Html:
  """A row that heads a group of rows, across `span` columns."""
  return el("tr", el("th", title, scope="rowgroup", colspan=span), cls="group")


def number(*content: Any) -> Html:
  """A cell in a column of numbers."""
  return el("td", *content, cls="num")


def estimate(e: format.Estimate) -> Html:
  """A cell with a value and, in brackets, its interval."""
  bounds = format.interval(e)
  return number(
    el("b", format.decimal(e.value)), " ", el("small", f"({bounds})") if bounds else None
  )


def note(*text: Any) -> Html:
  """A paragraph in small print."""
  return el("p", *text, cls="note")


def folded(title: Any, *content: Any, **attributes: Any) -> Html:
  """Content that the reader unfolds."""
  return el("details", el("summary", title), *content, **attributes)


def titled(title: Any, *content: Any, cls: str | None = None) -> Html:
  """Content below a small heading."""
  return el("div", el("h3", title), *content, cls=cls)


def figure(picture: Html, *caption: Any, cls: str | None = None) -> Html:
  """A picture above its caption."""
  return el("figure", picture, el("figcaption", *caption), cls=cls)
