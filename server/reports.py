"""What operators may ask of the engine's side, as bytes: response bodies, or a single word."""

from collections.abc import Sequence

from server.admission import Admission
from server.metrics import Metrics
from server.schemas import Calibration, CalibrationResponse, MeasuredRun, SlowestResponse
from server.slowest import Slowest
from server.types import LoadedModel


class Reports:
    """Writes readiness, metrics, the slowest requests, and what was measured of the models."""

    def __init__(self, models: Sequence[LoadedModel], admission: Admission, slowest: Slowest, metrics: Metrics) -> None:
        self._admission = admission
        self._models = models
        self._slowest = slowest
        self._metrics = metrics

    def write(self, name: str) -> bytes:
        """Write a report."""
        match name:
            case "status":
                return self._admission.status.encode()
            case "metrics":
                return self._metrics.render()
            case "slowest":
                return SlowestResponse(requests=self._slowest.worst()).model_dump_json().encode()
            case "calibration":
                models = [_describe_latency(model) for model in self._models]
                return CalibrationResponse(models=models).model_dump_json().encode()
        raise ValueError(name)


def _describe_latency(model: LoadedModel) -> Calibration:
    latency, most = model.latency, model.max_batch_size
    base, per_token, per_pair = latency.coefficients.tolist()
    return Calibration(
        model=model.name,
        base_ms=1000 * base,
        per_token_us=1e6 * per_token,
        per_pair_of_tokens_ns=1e9 * per_pair,
        drift=latency.drift,
        typical_tokens=round(latency.typical_tokens),
        rank_slice=latency.slice_size(most),
        batch_size_by_waiting={waiting: latency.batch_size(waiting, most) for waiting in (1, 2, 4, 8, 16, 64)},
        measured=[
            MeasuredRun(
                batch=one.batch,
                tokens=one.tokens,
                ms=1000 * one.seconds,
                fitted_ms=1000 * latency.fitted_s(one.batch, one.tokens),
            )
            for one in latency.samples
        ],
    )
