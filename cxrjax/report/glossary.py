"""Glossary of a page: explains the technical terms that the page uses."""

from __future__ import annotations

import html
import re

from cxrjax.report.html.element import Html, el

# Term, meaning, and the pattern that shows that a page uses it (if empty, the term itself).
TERMS: tuple[tuple[str, str, str], ...] = (
  (
    "95 % interval",
    "The range in which the value would lie had other patients of the same kind been tested: "
    "ranges made this way hold the true value 95 times in 100. The narrower, the surer. Where two"
    " ranges overlap, they alone do not tell which is better.",
    "95 % (confidence )?interval|In brackets",
  ),
  (
    "AUROC",
    "The chance that a radiograph with the finding gets a higher score than one without it: area "
    "under the ROC curve. 0.5 is guessing, 1 is perfect.",
    "",
  ),
  (
    "AUPRC",
    "Precision (how many of those called have the finding) averaged over all thresholds. Guessing"
    " has the share of radiographs that show the finding; 1 is perfect.",
    "",
  ),
  (
    "Accuracy",
    "The share of radiographs that are called rightly.",
    r"(?<!balanced )(?<!bal\. )accuracy",
  ),
  (
    "Balanced accuracy",
    "The share called rightly among those with the finding and among those without, averaged: "
    "classes count alike however many images they have. 0.5 is guessing between two.",
    "",
  ),
  ("Sensitivity", "The share called so of all radiographs that have the finding; also recall.", ""),
  (
    "Specificity",
    "The share called free of it of all radiographs that do not have the finding.",
    "",
  ),
  ("F1", "Harmonic mean of precision and sensitivity; 1 is perfect.", r"\bF1\b"),
  (
    "HM",
    "Harmonic mean of sensitivity and specificity; 1 is perfect, and 0 where one of them is.",
    r"\bHM\b",
  ),
  (
    "Calibration",
    "Whether probabilities mean what they say: of all radiographs with 0.8, 80 % should have the "
    "finding. ECE is the mean distance from that; 0 is perfect.",
    r"calibration|\bECE\b",
  ),
  (
    "Brier score, log loss",
    "How far the probabilities are from the truth; 0 is perfect.",
    "brier|log loss",
  ),
  (
    "Threshold",
    "A radiograph is called positive from this score on. Chosen on validation images, never on "
    "test images.",
    "",
  ),
  (
    "Dice, IoU",
    "Overlap of two masks, from 0 (apart) to 1 (the same). IoU is the stricter of the two.",
    r"\bDice\b|\bIoU\b",
  ),
  (
    "Surface distance",
    "How far the outlines of two masks lie apart: on average, or (95 % Hausdorff) at their worst "
    "but for the worst twentieth.",
    "surface distance|hausdorff",
  ),
  (
    "Training, validation, test",
    "Images that are learnt from; that choose between settings and set thresholds; that only "
    "judge. Whether a patient is in two of them the page says, where patients are known.",
    r"\bvalidation\b",
  ),
  (
    "Pretraining without labels",
    "The network learns from the radiographs alone what they have in common and how they differ; "
    "labels come later, if at all.",
    "without (their |using )?labels|self-supervised",
  ),
  (
    "Features",
    "The numbers into which a network turns a radiograph. Frozen: as they are, without further "
    "training.",
    "",
  ),
  ("kNN", "An image gets the label of the k training images with the most similar features.", ""),
  (
    "Linear probe",
    "A linear classifier on frozen features, fitted to labelled training images: what the "
    "features say of the labels.",
    "linear probe",
  ),
  (
    "Before training, random encoder",
    "The same network with random numbers in place of what it learns: what its shape alone can do.",
    "before training|random encoder|random network",
  ),
  (
    "Thumbnail floor",
    "Ridge regression on radiographs shrunk to 16x16 pixels: what can be had with no network at "
    "all.",
    "thumbnail",
  ),
  ("From scratch", "Begun with random numbers, not from a pretrained network.", "scratch"),
  ("Epoch", "One pass over all training images. A step learns from one batch of them.", ""),
  (
    "Seed",
    "The number from which all of a run's random choices follow: another seed shows how much is "
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
    "The places whose features, made stronger, would raise the score of a class most.",
    "",
  ),
  ("Occlusion", "How much the score of a class falls when a place is covered.", ""),
  (
    "FLOP",
    "One addition or multiplication of the network; a measure of cost that does not depend on the"
    " machine.",
    r"FLOPs?\b",
  ),
  (
    "Effective rank",
    "In how many directions features differ; near 1 they have collapsed and tell images apart no "
    "more.",
    "",
  ),
  ("Fingerprint", "A hash of the images' content: the same fingerprint, the same images.", ""),
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
