"""What captions, answers, rankings and segments are worth: formulas, and torchmetrics classes whose states reduce.

``text`` (CIDEr-D, BLEU, ROUGE-L, METEOR, soft VQA accuracy), ``retrieval`` (R@k, median rank), ``temporal`` (mAP and
Recall@Kx of segments) and ``domains`` (means of domains) hold the classes. The formulas behind them, in plain Python or
numpy, give a figure for each item: ``captions``, ``meteor``, ``vqa`` and ``segments``.
"""
