"""Checks that hold for every page: sound markup, nothing loaded, nothing run."""

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "col"}


class Checked(HTMLParser):
  """Parses a page and fails on unbalanced tags, scripts, handlers and loads."""

  def __init__(self, text):
    super().__init__()
    self.open, self.ids, self.text, self.links, self.images = [], [], [], [], 0
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
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open and self.open[-1] == tag, (self.open[-3:], tag)
    self.open.pop()

  def handle_data(self, data):
    if self.open and self.open[-1] == "style":
      assert "url(" not in data and "@import" not in data
    else:
      self.text.append(data)
