"""What fetching raises."""


class FetchError(Exception):
    """A model or its data could not be fetched; the message is one sentence."""
