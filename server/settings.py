"""Every setting of the server: a flag of vilt-serve and an environment variable VILT_*, from one declaration."""

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

import models

SHAPES = Path(models.__file__).parent / "artifacts" / "shapes"
PREFIX = "VILT_"
ORIGIN = re.compile(r"\*|https?://[^/\s?#]+", re.ASCII)
KEYS = re.compile(r"[\w.~+/-]+=*(,[\w.~+/-]+=*)*", re.ASCII)  # what a Bearer header can hold: RFC 6750, section 2.1


class Settings(BaseSettings):
    """Serve ViLT artifacts over HTTP: questions about an image, image-text matching, ranking.

    Every flag is also an environment variable: --max-batch-size is VILT_MAX_BATCH_SIZE. Without arguments the artifact
    that comes with the package is served; it knows coloured shapes and nothing else. Make others with vilt-export.
    --version says which version this is.
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
        default="cpu", description="onnxruntime's execution provider; the others are for an NVIDIA GPU, and fp16"
    )
    precision: Literal["auto", "fp32", "int8", "fp16"] = Field(
        default="auto",
        description="of the graphs; auto is int8 where the artifact vouches for it and the CPU has VNNI, on a GPU fp16",
    )
    workers: int = Field(
        default=1, ge=1, le=256, description="processes that receive and decode, for one that runs; 1 does all in one"
    )
    threads: int = Field(default=0, ge=0, description="of the model; 0 takes the CPUs this process may use")
    decode_threads: int = Field(default=0, ge=0, description="images decoded at once; 0 takes the CPUs")
    jpeg_decode: Literal["exact", "scaled"] = Field(
        default="exact", description="scaled reads large JPEGs at a fraction of their size: faster, answers may differ"
    )
    max_batch_size: int = Field(
        default=0,
        ge=0,
        le=256,
        description="most requests run together, fewer where that is sooner done; 0 is 8 on a CPU, 32 on a GPU",
    )
    calibration_s: float = Field(
        default=15.0, gt=0, description="longest time to measure the model at the first start on a machine"
    )
    cache_dir: Path | None = Field(
        default=None, description="keeps what is measured on this machine; by default in the user's cache folder"
    )
    decoded_cache_mb: float = Field(
        default=64.0, ge=0, description="patches of recent images that are kept: several questions, one decoding"
    )
    logits_cache_entries: int = Field(
        default=0, ge=0, description="answers that are kept for the same image and text again; 0 keeps none"
    )
    api_key: SecretStr | None = Field(
        default=None,
        description="Authorization: Bearer <key> is then needed for /v1; several, each a client, are separated by ','",
    )
    cors_origins: Annotated[list[str], NoDecode] = Field(
        default=[],
        description="origin whose pages may call the server from a browser, https://example.com, or * for any; repeat"
        " for several (in VILT_CORS_ORIGINS: separated by ',')",
    )
    max_client_requests: int = Field(
        default=0, ge=0, description="requests that a client may have in flight before it gets 429; 0 is any number"
    )
    max_queue_entries: int = Field(
        default=1024, ge=1, description="work in flight before new requests get 429; a rank counts each candidate"
    )
    deadline_ms: float = Field(
        default=60_000, ge=1, description="time a request has from its head on, unless X-Deadline-Ms says otherwise"
    )
    max_body_bytes: int = Field(default=20_000_000, ge=1, description="largest request body")
    max_bodies_mb: float = Field(
        default=512.0, gt=0, description="bytes of all request bodies in flight, before another gets 429"
    )
    receive_timeout_s: float = Field(
        default=60.0, gt=0, description="longest time in which a request's head, and then its body, may arrive"
    )
    max_image_pixels: int = Field(default=50_000_000, ge=1, description="largest image, checked before decoding")
    max_request_pixels: int = Field(
        default=1_000_000_000, ge=1, description="of all images of a request, counted before each is decoded"
    )
    max_text_chars: int = Field(default=2_000, ge=1, description="longest question or text")
    max_candidates: int = Field(default=1_000, ge=1, description="most candidates of a rank")
    keep_alive_s: int = Field(default=65, ge=1, description="how long an idle connection is kept")
    drain_pause_s: float = Field(
        default=1.0, ge=0, description="how long to keep serving, not ready, after SIGTERM: balancers need to notice"
    )
    drain_timeout_s: int = Field(default=60, ge=1, description="longest wait for requests in flight after that")
    log_format: Literal["console", "json"] = Field(default="console", description="of the log on standard error")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level logged")

    @field_validator("api_key")
    @classmethod
    def _can_be_sent(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not KEYS.fullmatch(value.get_secret_value()):  # an empty one is not "no key": say so
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
            if not ORIGIN.fullmatch(value):  # browsers name origins so, and anything else would match none
                raise ValueError(f"{value!r} is not * or an origin as https://example.com or http://localhost:3000")
        return values


def variable(name: str) -> str:
    """Name the environment variable of a setting."""
    return PREFIX + name.upper()


def warnings(settings: Settings, environment: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each thing that is probably not meant so."""
    yield from unknown_variables(environment)
    if settings.deadline_ms > 1000 * settings.drain_timeout_s:
        yield (
            f"A request may take {settings.deadline_ms / 1000:g} s (--deadline-ms), but a shutdown waits only"
            f" {settings.drain_timeout_s} s (--drain-timeout-s): requests that take longer are cut off with 503."
        )


def unknown_variables(environment: Iterable[str]) -> Iterator[str]:
    """Say of each VILT_* variable that sets nothing so, and what it may have been meant to be."""
    known = [variable(name) for name in Settings.model_fields]
    for name in sorted(environment):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.75)
            yield f"{name} sets nothing" + (f"; did you mean {near[0]}?" if near else ": there is no such setting")
