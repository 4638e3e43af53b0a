"""What the two tasks beside this file call."""


def visual(doc):
    return [doc["video"]]


def text(doc):
    return doc["question"]


def scored(doc, results):
    return {"exact": float(results[0] == doc["answer"])}
