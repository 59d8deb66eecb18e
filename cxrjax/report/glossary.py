"""Glossary of a page: explains the technical terms that the page uses."""

from __future__ import annotations

import html
import re

from cxrjax.report.html.element import Html, el

# Term, meaning, and the pattern that shows that a page uses it (if empty, the term itself).
TERMS: tuple[tuple[str, str, str], ...] = (
  (
    "95 % interval",
    "The range of values that the test data support: computed in this way, 95 of 100 such ranges "
    "contain the true value for patients of the same kind. The narrower, the more certain. Two "
    "overlapping ranges do not tell by themselves which value is better.",
    "95 % (confidence )?interval|In brackets",
  ),
  (
    "AUROC",
    "Area under the ROC curve: the probability that a radiograph with the finding scores higher "
    "than one without it. 0.5 is guessing, 1 is perfect.",
    "",
  ),
  (
    "AUPRC",
    "Precision (the share of positive calls that are right) averaged over recall. Guessing gives "
    "the share of radiographs that have the finding; 1 is perfect.",
    "",
  ),
  (
    "Accuracy",
    "The share of radiographs that are classified correctly.",
    r"(?<!balanced )(?<!bal\. )accuracy",
  ),
  (
    "Balanced accuracy",
    "The share classified correctly in each class, averaged: all classes count equally, however "
    "many images they have. With two classes, 0.5 is guessing.",
    "",
  ),
  (
    "Sensitivity",
    "Of the radiographs with the finding, the share called positive; also recall.",
    "",
  ),
  ("Specificity", "Of the radiographs without the finding, the share called negative.", ""),
  ("F1", "Harmonic mean of precision and sensitivity; 1 is perfect.", r"\bF1\b"),
  (
    "HM",
    "Harmonic mean of sensitivity and specificity; 1 is perfect, and 0 where one of them is.",
    r"\bHM\b",
  ),
  (
    "Calibration",
    "Whether probabilities can be taken literally: of the radiographs given 0.8, 80 % should have "
    "the finding. ECE is the mean deviation from that; 0 is perfect.",
    r"calibration|\bECE\b",
  ),
  (
    "Brier score, log loss",
    "How far predicted probabilities are from the truth; 0 is perfect.",
    "brier|log loss",
  ),
  (
    "Threshold",
    "The score from which a radiograph is called positive. Chosen on validation images, never on "
    "test images.",
    "",
  ),
  (
    "Dice, IoU",
    "Overlap of two masks, from 0 (disjoint) to 1 (identical). IoU is the stricter of the two.",
    r"\bDice\b|\bIoU\b",
  ),
  (
    "Surface distance",
    "Distance between the outlines of two masks: on average, or (95 % Hausdorff) its 95th "
    "percentile.",
    "surface distance|hausdorff",
  ),
  (
    "Training, validation, test",
    "Images to learn from; to choose settings and thresholds on; to evaluate on, and nothing "
    "else. If patients are known, the page states whether any is in two of them.",
    r"\bvalidation\b",
  ),
  (
    "Pretraining without labels",
    "The network learns from the radiographs alone what they have in common and how they differ; "
    "labels are used later, if at all.",
    "without (their |using )?labels|self-supervised",
  ),
  (
    "Features",
    "The numbers that a network computes from a radiograph. Frozen: of a network that is not "
    "trained further.",
    "",
  ),
  ("kNN", "An image gets the label of the k training images whose features are most similar.", ""),
  (
    "Linear probe",
    "A linear classifier on frozen features, fitted on labelled training images: how much the "
    "features reveal of the labels.",
    "linear probe",
  ),
  (
    "Before training, random encoder",
    "The same network with random weights: what its architecture alone achieves.",
    "before training|random encoder|random network",
  ),
  (
    "Thumbnail floor",
    "Ridge regression on radiographs shrunk to 16x16 pixels: what can be achieved without any "
    "network.",
    "thumbnail",
  ),
  ("From scratch", "Starting from random weights, not from a pretrained network.", "scratch"),
  ("Epoch", "One pass over all training images. A step learns from one batch of them.", ""),
  (
    "Seed",
    "The number that determines all random choices of a run: other seeds show how much is due to "
    "chance.",
    r"\bseeds?\b",
  ),
  (
    "Attention, rollout",
    "How much the network's summary of a radiograph draws from each of its patches, in the last "
    "layer or (rollout) followed through all layers. Vision transformers only.",
    "attention|rollout",
  ),
  (
    "Grad-CAM",
    "The regions whose features, if stronger, would raise the score of a class most.",
    "",
  ),
  ("Occlusion", "How much the score of a class drops when a region is covered.", ""),
  (
    "FLOP",
    "One addition or multiplication of the network; a measure of cost that does not depend on the"
    " machine.",
    r"FLOPs?\b",
  ),
  (
    "Effective rank",
    "The number of directions in which features vary; near 1 they have collapsed and no longer "
    "distinguish images.",
    "",
  ),
  ("Fingerprint", "A hash of the images' content: equal fingerprints, equal images.", ""),
)


def section(page: str) -> Html | None:
  """Glossary of the terms that a page uses, in a fixed order; None where it uses none."""
  text = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())
  entries = [
    (term, meaning)
    for term, meaning, pattern in TERMS
    if re.search(pattern or re.escape(term), text, 0 if "\\b" in pattern else re.IGNORECASE)
  ]
  if not entries:
    return None
  return el(
    "dl", [el("div", el("dt", term), el("dd", meaning)) for term, meaning in entries], cls="terms"
  )
