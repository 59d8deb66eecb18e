"""The words a page explains are those it uses."""

import re

import pytest

from cxrjax.report import glossary
from cxrjax.report.html import format
from cxrjax.report.html.element import el


def named(page):
  html = glossary.section(str(page))
  return [] if html is None else re.findall("<dt>(.*?)</dt>", html)


def test_only_what_the_page_uses_is_explained():
  assert named(el("p", "its AUROC is ", el("b", "0.9"))) == ["AUROC"]
  assert named(el("p", "nothing of the kind")) == []
  # Neither a part of another word nor what stands in a tag.
  assert named(el("p", "dicey", title="AUROC")) == []


@pytest.mark.parametrize(
  "text, expected",
  [
    ("Accuracy", ["Accuracy"]),
    ("balanced accuracy", ["Balanced accuracy"]),
    ("accuracy and balanced accuracy", ["Accuracy", "Balanced accuracy"]),
    ("without their labels", ["Pretraining without labels"]),
    ("The same network from scratch", ["From scratch"]),
    ("4 GFLOPs", ["FLOP"]),
  ],
)
def test_words_are_known_in_the_forms_they_are_used_in(text, expected):
  assert named(el("p", text)) == expected


@pytest.mark.parametrize("measure", [m for m in format.MEASURES if m != "nll"])
def test_every_measure_has_its_explanation(measure):
  assert named(el("td", format.measure(measure)))
