"""Checks that hold for every page: sound markup, nothing loaded, nothing run, small, and built so
that it fits a phone: what is wide stands in something that scrolls or shrinks."""

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "col"}


class Checked(HTMLParser):
  """Parses a page and fails on unbalanced tags, scripts, handlers and loads."""

  def __init__(self, text):
    super().__init__()
    self.open, self.ids, self.text, self.links, self.images = [], [], [], [], 0
    self.around = []  # classes of the open elements
    assert len(text.encode()) < 5e6
    if text.startswith("<!doctype"):
      assert 'name="viewport" content="width=device-width, initial-scale=1"' in text
      assert re.search("prefers-color-scheme: dark", text)
    self.feed(text)
    self.close()
    assert self.open == []
    assert len(set(self.ids)) == len(self.ids)
    for link in self.links:
      assert link[1:] in self.ids

  def handle_starttag(self, tag, attributes):
    assert tag not in ("script", "link", "iframe", "object", "embed", "base")
    names = [name for name, _ in attributes]
    assert len(set(names)) == len(names)
    for name, value in attributes:
      assert not name.startswith("on")
      assert name not in ("style", "srcset", "data", "action", "xlink:href")
      if name == "src":
        assert re.match(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+$", value)
        self.images += 1
      if name == "href":
        assert value.startswith("#")
        self.links.append(value)
      if name == "id":
        self.ids.append(value)
      if name in ("d", "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height"):
        assert not re.search("nan|inf", value), (tag, name, value)
    given = dict(attributes)
    if tag == "table":
      assert any("scroll" in of for of in self.around), "a table that cannot scroll"
    if tag == "img":
      assert given["alt"] and int(given["width"]) > 0 and int(given["height"]) > 0
    if tag == "svg" and "svg" not in self.open:  # a drawing is named, or says nothing of its own
      assert given.get("aria-label") or given.get("aria-hidden")
    if tag not in VOID:
      self.open.append(tag)
      self.around.append((given.get("class") or "").split())

  def handle_endtag(self, tag):
    assert self.open and self.open[-1] == tag, (self.open[-3:], tag)
    self.open.pop()
    self.around.pop()

  def handle_data(self, data):
    if self.open and self.open[-1] == "style":
      assert "url(" not in data and "@import" not in data
    else:
      self.text.append(data)
