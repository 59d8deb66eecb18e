"""Evaluation of encoders and predictions: kNN, linear probe, thumbnail floor, classifier, masks."""
