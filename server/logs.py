"""Logging to standard error, for people or machines: one line per request, and never a text, an image or a key."""

import json
import logging
import logging.config
import time

FIELDS = "fields"  # extra={FIELDS: {...}} puts named values on a record


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class ConsoleFormatter(logging.Formatter):
    """Time, level, message, named values."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {record.levelname:7} {record.getMessage()}"
        line += "".join(f" {name}={value}" for name, value in getattr(record, FIELDS, {}).items())
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


def configure(log_format: str, level: str) -> None:
    """Send every logger, uvicorn's included, through one handler."""
    formatter = JsonFormatter if log_format == "json" else ConsoleFormatter
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"ours": {"()": formatter}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "ours"}},
            "root": {"level": level.upper(), "handlers": ["stderr"]},
            "loggers": {
                "uvicorn.access": {"level": "WARNING"},
                "PIL": {"level": "WARNING"},
            },
        }
    )
