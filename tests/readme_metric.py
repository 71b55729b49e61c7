"""The score of the README's example, kept here so that it is run."""


def accuracy(outputs, data):
    """outputs, data: dictionaries of arrays, for the same samples; larger is better."""
    return (outputs["logits"].argmax(axis=1) == data["labels"]).mean()
