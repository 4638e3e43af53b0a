"""Questions, answers, scores, costs and reports."""
