"""Benchmarks: each yields clips with questions, options and gold answers, and scores a list of predictions.

A benchmark knows nothing about models: ``hvlm.evaluation.evaluate`` asks the questions, and a predictions file made by
somebody else is scored by the same code (``hvlm.evaluation.evaluate.score_predictions``).
"""
