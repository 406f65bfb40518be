"""The JSON contract: what each route reads and writes. Multipart and raw bodies are validated by the same models."""

from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from server.slowest import RequestRecord

NOT_BASE64 = "The image is not valid base64; URLs are not fetched."


def _could_be_base64(image: str | bytes) -> str | bytes:
    if isinstance(image, str) and not image.isascii():  # one emoji, and each letter takes four bytes until it is read
        raise PydanticCustomError("invalid_base64", NOT_BASE64)
    return image


def _no_bool(value: object) -> object:
    if isinstance(value, bool):  # pydantic takes true for 1
        raise ValueError("Input should be a valid integer")  # noqa: TRY004 pydantic turns this type into a refusal
    return value


EXAMPLE_IMAGE = (  # a red circle of 48x48 pixels
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAADAAAAAwAQMAAABtzGvEAAAABlBMVEX/////AADrWueTAAAAaUlEQVR42p3PwQ3CMBSD4S8v"
    "SO2REboJYfOMwAgdIccKVQ0HhCI4IIEvln/7Yv7W1MDlILOmVEOiYOq9CTOzeK7DmZOwEAMW0kggq0jv8JtlCtfPrtJHWjmExj7gxibcuQmd+no0/v2m"
    "B9mQFkejAk+3AAAAAElFTkSuQmCC"
)
Image = Annotated[
    str | bytes,
    AfterValidator(_could_be_base64),
    WithJsonSchema({"type": "string", "description": "an image file, as base64 or in a data: URI"}),
]
TopK = Annotated[int, BeforeValidator(_no_bool), Field(ge=1, description="how many to return, at most")]
ModelName = Annotated[
    str | None, Field(description="a name from GET /v1/models; default: the first model that serves the task")
]


class Body(BaseModel):
    """A request; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class VqaBody(Body):
    image: Image = Field(examples=[EXAMPLE_IMAGE])
    question: str = Field(examples=["How many circles are there?"])
    top_k: TopK = 5
    model: ModelName = None


class ItmBody(Body):
    image: Image = Field(examples=[EXAMPLE_IMAGE])
    text: str = Field(examples=["a red circle left of a blue square"])
    model: ModelName = None


class Item(Body):
    """A text or an image."""

    text: str | None = None
    image: Image | None = None

    @model_validator(mode="after")
    def _is_one_of(self) -> Self:
        if (self.text is None) == (self.image is None):
            raise ValueError("give either text or image")
        return self


class Candidate(Item):
    id: str | None = Field(default=None, max_length=256, description="chosen by you; returned with its result")

    @field_validator("id")
    @classmethod
    def _is_unicode(cls, value: str | None) -> str | None:
        if value is not None and not value.isascii():
            value.encode()  # JSON can contain half of a surrogate pair, which a response cannot
        return value


class RankBody(Body):
    query: Item
    candidates: list[Candidate] = Field(min_length=1, description="images for a text query, texts for an image query")
    top_k: TopK | None = None
    model: ModelName = None

    @model_validator(mode="after")
    def _is_crossed(self) -> Self:
        query, wanted = ("a text", "image") if self.query.text is not None else ("an image", "text")
        for index, candidate in enumerate(self.candidates):
            if getattr(candidate, wanted) is None:
                raise ValueError(f"The query is {query}, so candidates[{index}] must have the field {wanted!r}")
        return self


class TaskResponse(BaseModel):
    model: str
    request_id: str
    truncated: bool = Field(description="a text was longer than the model reads, and was cut")
    timing_ms: dict[str, float] = Field(description="stages in order, parts of inference, total")


class Answer(BaseModel):
    answer: str
    score: float = Field(ge=0, le=1, description="sigmoid of the logit; scores do not sum to 1")


class VqaResponse(TaskResponse):
    answers: list[Answer]


class ItmResponse(TaskResponse):
    score: float = Field(ge=0, le=1, description="probability that text and image belong together")
    match: bool = Field(description="score >= 0.5")


class RankResult(BaseModel):
    index: int = Field(description="position of the candidate in the request, from 0")
    id: str | None
    score: float = Field(ge=0, le=1, description="sigmoid of the logit")
    logit: float


class RankResponse(TaskResponse):
    results: list[RankResult]


class ModelInfo(BaseModel):
    name: str
    description: str
    tasks: list[str]
    artifact: str = Field(description="first 12 digits of a digest of its graphs, tokenizer and labels")
    precision: str
    provider: str
    max_text_tokens: int
    labels: int = Field(description="number of answers that the model can give; 0 if it answers no questions")


class ModelsResponse(BaseModel):
    models: list[ModelInfo]


class MeasuredRun(BaseModel):
    batch: int
    tokens: int = Field(description="tokens of one row: text, the image's cls token, patches, padding")
    ms: float
    fitted_ms: float


class Calibration(BaseModel):
    """ms = drift * (base + per token * batch * tokens + per pair of tokens * batch * tokens ** 2)."""

    model: str
    base_ms: float
    per_token_us: float
    per_pair_of_tokens_ns: float
    drift: float = Field(description="how many times as long runs take now as during warm-up")
    typical_tokens: int
    rank_slice: int = Field(description="candidates of a rank in one run")
    batch_size_by_waiting: dict[int, int] = Field(
        description="size of the next batch, by the number of entries that wait"
    )
    measured: list[MeasuredRun]


class CalibrationResponse(BaseModel):
    models: list[Calibration]


class SlowestResponse(BaseModel):
    requests: list[RequestRecord] = Field(description="slowest first; when is the instant of the response")


class StatusResponse(BaseModel):
    status: str = Field(description="alive, of /livez; ready, or why not")


class ErrorResponse(BaseModel):
    error: str
    code: str
    request_id: str
    retry_after_ms: int | None = Field(default=None, description="with 429 and 503")
    queued_ms: float | None = Field(default=None, description="overloaded, deadline_unreachable: the work ahead")
    estimate_ms: float | None = Field(default=None, description="the same codes: how long an answer would have taken")
    deadline_ms: float | None = Field(default=None, description="the same codes: the time that was left")


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 404, 405, 413, 415, 422, 429, 500, 503, 504)
}
FILE = {"type": "string", "format": "binary"}
RAW = ("image/png", "image/jpeg", "image/*")  # two by name, for clients that send no wildcard as a Content-Type
HEADERS: list[dict[str, Any]] = [
    {
        "name": "X-Deadline-Ms",
        "in": "header",
        "schema": {"type": "number", "minimum": 1},
        "description": "time limit in milliseconds, from the arrival of the request's head",
    },
    {
        "name": "X-Request-ID",
        "in": "header",
        "schema": {"type": "string"},  # no pattern: what does not match is not refused
        "description": "the request's id, returned with the response; one is made if it is missing, longer than 128"
        " characters, or of others than A-Z a-z 0-9 . _ -",
    },
]


def _json_schema(body: type[Body]) -> dict[str, Any]:
    """Describe a body for OpenAPI, with nested models inlined."""
    schema = body.model_json_schema()
    definitions = schema.pop("$defs", {})

    def written_out(node: Any) -> Any:
        if isinstance(node, list):
            return [written_out(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return written_out(definitions[node["$ref"].rsplit("/", 1)[1]])
        return {name: written_out(value) for name, value in node.items()}

    written: dict[str, Any] = written_out(schema)
    return written


def three_forms(body: type[Body], model: str | None) -> dict[str, Any]:
    """Describe a body that comes as multipart, JSON or a raw image; `model` is one that serves the task.

    Examples are what /docs sends as it stands, so the query string's are those of required fields only.
    """
    fields = _json_schema(body)
    given = _without_null(fields["properties"])
    form = {**fields, "properties": {**given, "image": FILE, "model": _named(given["model"], model)}}
    query = [
        {"name": name, "in": "query", **_as_query(name, schema, is_required=name in fields["required"])}
        for name, schema in given.items()
        if name != "image"
    ]
    contents: dict[str, Any] = {"multipart/form-data": form, "application/json": fields, **dict.fromkeys(RAW, FILE)}
    example = {name: given[name]["examples"][0] for name in fields["required"]}
    return {"requestBody": _request_body(contents, example), "parameters": [*query, *HEADERS]}


def _as_query(name: str, schema: dict[str, Any], *, is_required: bool) -> dict[str, Any]:
    """Describe a field of the query string, without the default: some clients send it, beside that of the body."""
    kept = {key: value for key, value in schema.items() if key not in ("default", "examples", "description")}
    about = schema.get("description", "")
    if name != "model":  # which may accompany any form
        about = f"with a raw image body: {about or 'the ' + name}"
    if "default" in schema:
        about += f"; default: {schema['default']}"
    return {"schema": kept, "description": about, **({"example": schema["examples"][0]} if is_required else {})}


def rank_forms(model: str | None) -> dict[str, Any]:
    """Describe a rank's body: JSON, or multipart with repeated parts; `model` is one that ranks."""
    fields = _json_schema(RankBody)
    given = _without_null(fields["properties"])
    form = {
        "type": "object",
        "description": "Either query_text and images, or query_image and texts.",
        "properties": {
            "query_text": {"type": "string", "examples": ["a red circle"]},
            "images": {"type": "array", "items": FILE, "minItems": 1},
            "query_image": FILE,
            "texts": {"type": "array", "items": {"type": "string"}, "minItems": 1, "example": []},
            "top_k": {**given["top_k"], "examples": [10]},
            "model": _named(given["model"], model),
        },
    }
    contents = {"multipart/form-data": form, "application/json": fields}
    example = {"query": {"text": "a red circle"}, "candidates": [{"id": "a", "image": EXAMPLE_IMAGE}], "top_k": 10}
    return {"requestBody": _request_body(contents, example), "parameters": HEADERS}


def _without_null(properties: dict[str, Any]) -> dict[str, Any]:
    """Describe the same fields outside of JSON, where there is no null and a client would send the word."""
    given = {}
    for name, schema in properties.items():
        kept = {key: value for key, value in schema.items() if key != "anyOf" and (key, value) != ("default", None)}
        kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
        given[name] = {**kept, **(kinds[0] if kinds else {})}
    return given


def _named(schema: dict[str, Any], model: str | None) -> dict[str, Any]:
    return {**schema, "examples": [model]} if model else schema


def _request_body(contents: dict[str, dict[str, Any]], example: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, dict[str, Any]] = {kind: {"schema": schema} for kind, schema in contents.items()}
    content["application/json"]["example"] = example
    return {"required": True, "content": content}
