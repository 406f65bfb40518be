"""What can be wrong with an input or an artifact. Knows no HTTP.

ModelError
├── InvalidInput        the caller's image or text cannot be used; `code` is stable, the message says what to change
│   └── InputTooLarge   it breaks a stated limit
└── ArtifactError       an artifact folder cannot be served: one sentence, for the person who starts the server
"""


class ModelError(Exception):
    """Base of this package's errors."""


class InvalidInput(ModelError):
    """An image or a text that cannot be used."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class InputTooLarge(InvalidInput):
    """An image or a text beyond a stated limit."""


class ArtifactError(ModelError):
    """An artifact that is missing, damaged or written for something else."""
