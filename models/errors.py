"""What can be wrong with an input or an artifact. Knows no HTTP.

InvalidInput        the caller's image or text cannot be used; `code` is stable, the message says what to change
└── InputTooLarge   it exceeds a stated limit
ArtifactError       an artifact folder cannot be served: one sentence, for the person who starts the server
"""


class InvalidInput(Exception):
    """An image or a text that cannot be used."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class InputTooLarge(InvalidInput):
    """An image or a text that exceeds a stated limit."""


class ArtifactError(Exception):
    """An artifact that is missing, damaged or made for another version or processor."""
