"""Every setting of the server: a flag of vilt-serve and an environment variable VILT_*, from one declaration."""

import difflib
import re
from argparse import ArgumentParser, HelpFormatter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, CliSettingsSource, NoDecode, SettingsConfigDict

import models

SHAPES = Path(models.__file__).parent / "artifacts" / "shapes"
PREFIX = "VILT_"
ORIGIN = re.compile(r"\*|https?://[^/\s?#]+", re.ASCII)
# What --help calls a value: by its flag, or by the unit at the end of the flag; N where there is none.
METAVARS = {"model": "DIR", "cache_dir": "DIR", "host": "ADDRESS", "api_key": "KEY", "cors_origins": "ORIGIN"}
UNITS = {"s": "SECONDS", "ms": "MS", "mb": "MB", "bytes": "BYTES"}
DEFAULTS = {"model": "the shipped shapes", "cache_dir": "in the user's cache folder"}
# What a value has to be, by the kind of pydantic's error.
EXPECTED = {
    "greater_than": "has to be more than {gt:g}",
    "greater_than_equal": "has to be at least {ge:g}",
    "less_than_equal": "may be at most {le:g}",
    "int_parsing": "has to be a whole number",
    "float_parsing": "has to be a number",
    "finite_number": "has to be a finite number",
    "literal_error": "has to be {expected}",
    "too_short": "has to name at least {min_length}",
}
KEYS = re.compile(r"[\w.~+/-]+=*(,[\w.~+/-]+=*)*", re.ASCII)  # what a Bearer header can hold: RFC 6750, section 2.1


class Settings(BaseSettings):
    """Serve ViLT artifacts over HTTP: questions about an image, image-text matching, ranking.

    Every flag is also an environment variable: --max-batch-size is VILT_MAX_BATCH_SIZE. Without arguments the artifact
    that comes with the package is served; it knows coloured shapes and nothing else. Make others with vilt-export.
    --version prints the version.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        cli_prog_name="vilt-serve",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
    )

    model: Annotated[list[Path], NoDecode] = Field(
        default=[SHAPES],
        min_length=1,
        description="artifact folder; repeat to serve several (in VILT_MODEL: separated by ',')",
    )
    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    provider: Literal["cpu", "cuda", "tensorrt"] = Field(
        default="cpu", description="onnxruntime's execution provider; cuda and tensorrt run fp16 on an NVIDIA GPU"
    )
    precision: Literal["auto", "fp32", "int8", "fp16"] = Field(
        default="auto",
        description="numeric precision of the model; auto: int8 if it passed its accuracy gate and the CPU has VNNI,"
        " else fp32; on a GPU fp16",
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=256,
        description="HTTP and image-decoding processes in front of one model process; 1: one process does it all",
    )
    threads: int = Field(
        default=0, ge=0, description="threads that run the model; 0: one per CPU that this process may use"
    )
    decode_threads: int = Field(
        default=0, ge=0, description="images decoded at once; 0: one per CPU that this process may use"
    )
    jpeg_decode: Literal["exact", "scaled"] = Field(
        default="exact", description="scaled: decode large JPEGs at a reduced size; faster, but scores may change"
    )
    max_batch_size: int = Field(
        default=0,
        ge=0,
        le=256,
        description="most requests in one batch, fewer where that is faster; 0: 8 on a CPU, 32 on a GPU",
    )
    calibration_s: float = Field(
        default=15.0, gt=0, description="longest time spent measuring the model at the first start on a machine"
    )
    cache_dir: Path | None = Field(
        default=None, description="folder for what is measured on this machine, and for TensorRT's engines"
    )
    decoded_cache_mb: float = Field(
        default=64.0,
        ge=0,
        description="memory for preprocessed images, so that several questions about one image decode it once",
    )
    logits_cache_entries: int = Field(default=0, ge=0, description="answers kept for the same image and text; 0: none")
    api_key: SecretStr | None = Field(
        default=None,
        description="if set, /v1 requires Authorization: Bearer KEY; separate several by ',', each is a client",
    )
    cors_origins: Annotated[list[str], NoDecode] = Field(
        default=[],
        description="origin whose pages may call the server from a browser, such as https://example.com, or * for any;"
        " repeat for several (in VILT_CORS_ORIGINS: separated by ',')",
    )
    max_client_requests: int = Field(
        default=0, ge=0, description="most requests of one client in progress before it gets 429; 0: any number"
    )
    max_queue_entries: int = Field(
        default=1024,
        ge=1,
        description="most image-text pairs in progress before new requests get 429; a rank has one per candidate, and a"
        " request that finds none in progress is always accepted",
    )
    deadline_ms: float = Field(
        default=60_000,
        ge=1,
        description="time limit of a request, from the arrival of its head; X-Deadline-Ms sets another",
    )
    max_body_bytes: int = Field(default=20_000_000, ge=1, description="largest request body")
    max_bodies_mb: float = Field(
        default=512.0,
        gt=0,
        description="total size of request bodies held at once, divided among the workers, before new requests get 429",
    )
    receive_timeout_s: float = Field(
        default=60.0, gt=0, description="longest time for a request's head to arrive, and then for its body"
    )
    max_image_pixels: int = Field(
        default=50_000_000, ge=1, description="most pixels in an image, checked before it is decoded"
    )
    max_request_pixels: int = Field(
        default=1_000_000_000, ge=1, description="most pixels in all images of a request together"
    )
    max_text_chars: int = Field(default=2_000, ge=1, description="most characters in a question or text")
    max_candidates: int = Field(default=1_000, ge=1, description="most candidates of a rank")
    keep_alive_s: int = Field(default=65, ge=1, description="how long an idle connection is kept")
    drain_pause_s: float = Field(
        default=1.0,
        ge=0,
        description="how long to keep serving, not ready, after SIGTERM, until load balancers have noticed",
    )
    drain_timeout_s: int = Field(default=60, ge=1, description="longest wait for requests in progress after that pause")
    log_format: Literal["console", "json"] = Field(default="console", description="format of the log on standard error")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="lowest level that is logged"
    )

    @field_validator("api_key")
    @classmethod
    def _can_be_sent(cls, value: SecretStr | None) -> SecretStr | None:
        # An empty key is a mistake, and does not mean "no key".
        if value is not None and not KEYS.fullmatch(value.get_secret_value()):
            raise ValueError("a key is one or more of A-Z a-z 0-9 - . _ ~ + /, and = at its end")
        return value

    @field_validator("model", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [one.strip() for one in value.split(",") if one.strip()] if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, values: list[str]) -> list[str]:
        for value in values:
            if not ORIGIN.fullmatch(value):  # the form in which browsers send origins: anything else would match none
                raise ValueError(f"{value!r} is not * or an origin as https://example.com or http://localhost:3000")
        return values


def command_line() -> CliSettingsSource[Settings]:
    """Return a source that reads flags, with a --help that shows no Python."""
    return CliSettingsSource(Settings, add_argument_method=_add_flag, formatter_class=HelpFormatter)


def _add_flag(parser: ArgumentParser, *names: str, **options: Any) -> None:
    if (name := options.get("dest")) is not None:
        help_text = f"{Settings.model_fields[name].description} (default: {shown_default(name)})"
        options["help"] = help_text.replace("%", "%%")
        if not options["metavar"].startswith("{"):  # those of a choice are its values
            options["metavar"] = METAVARS.get(name) or UNITS.get(name.rsplit("_")[-1], "N")
    parser.add_argument(*names, **options)


def shown_default(name: str) -> str:
    """Write the default of a setting for people."""
    default = Settings.model_fields[name].default
    return DEFAULTS.get(name) or ("none" if default in (None, []) else f"{default}".removesuffix(".0"))


def explain(error: ValidationError) -> str:
    """Describe the first mistake in a sentence: the setting, its value, and what it has to be."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    flag = f"--{name.replace('_', '-')} (or {variable(name)})"
    if first["type"] in EXPECTED:
        return f"{flag} is {first['input']!r}, but {EXPECTED[first['type']].format_map(first.get('ctx', {}))}"
    return f"{flag}: {first['msg'].removeprefix('Value error, ')}"


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + name.upper()


def warnings(settings: Settings, environment: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each setting that is probably a mistake."""
    yield from unknown_variables(environment)
    if settings.deadline_ms > 1000 * settings.drain_timeout_s:
        yield (
            f"A request may take {settings.deadline_ms / 1000:g} s (--deadline-ms), but a shutdown waits only"
            f" {settings.drain_timeout_s} s (--drain-timeout-s): requests that take longer are cut off with 503."
        )


def unknown_variables(environment: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each VILT_* variable that sets nothing, with the setting that may have been meant."""
    known = [variable(name) for name in Settings.model_fields]
    for name in sorted(environment):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.75)
            yield f"{name} sets nothing" + (f"; did you mean {near[0]}?" if near else ": there is no such setting")
