"""Compare the written graphs with the torch module and with transformers.

transformers has no class with a matching head: for that the oracle is its trunk with the head's linear map on top.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import ViltConfig, ViltForImageAndTextRetrieval, ViltForQuestionAnswering, ViltModel

from export.checkpoint import Checkpoint
from export.graph import Fused, GraphConfig
from export.sizes import WORDS
from models.answers import TRUE_PAIR, matching_score, sigmoids
from models.batch import Features, Feeds, collate
from models.image import to_patches
from models.spec import Grid
from models.text import TextTokens

FP32_TOLERANCE = 1e-4  # max |logit difference|; observed about 1e-6 times the logits' own size
BATCH_TOLERANCE = 1e-3  # max |score difference| of a row alone and in a batch: other shapes round differently

Logits = dict[str, NDArray[np.float32]]
Runner = Callable[[Feeds], Logits]


class ParityError(Exception):
    """The graph and its reference disagree; the message has the numbers."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture already at the model's size, and a text, before either becomes tensors."""

    pixels: NDArray[np.uint8]  # (H, W, 3)
    input_ids: NDArray[np.int64]  # (L,)

    def features(self, config: GraphConfig) -> Features:
        image = to_patches(Image.fromarray(self.pixels), config.spec)
        return Features(image, TextTokens(self.input_ids, truncated=False))


Progress = Callable[[list[list[Sample]]], Iterable[list[Sample]]]


def cases(config: GraphConfig, vocabulary: int, seed: int = 0) -> Iterator[list[Sample]]:
    """Yield single samples of common and extreme grids and lengths, then batches that need every kind of padding."""
    rng = np.random.default_rng(seed)
    longest = config.spec.max_text_tokens
    long, side = config.spec.grids[-1]  # the tallest picture that is not capped: 19 x 12 for 384 / 32
    wide = [(side, side), (side, round(4 / 3 * side)), (side, long), (side // 2, long), (2, long), (1, long)]
    spread = [*wide, *((columns, rows) for rows, columns in wide[1:])]
    lengths = np.linspace(3, longest, len(spread)).astype(int)
    samples = [_sample(config, grid, length, vocabulary, rng) for grid, length in zip(spread, lengths, strict=True)]
    for sample in samples:
        yield [sample]
    for size in (2, 3, 5):
        yield [samples[index] for index in rng.choice(len(samples), size=min(size, len(samples)), replace=False)]


def _sample(config: GraphConfig, grid: Grid, length: int, vocabulary: int, rng: np.random.Generator) -> Sample:
    height, width = (side * config.spec.patch_px for side in grid)
    return Sample(
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8), rng.integers(0, vocabulary, length, dtype=np.int64)
    )


def torch_runner(model: Fused) -> Runner:
    """Run the torch module."""

    def run(feeds: Feeds) -> Logits:
        tensors = (
            torch.from_numpy(array) for array in (feeds.input_ids, feeds.patches, feeds.position_ids, feeds.mask)
        )
        with torch.inference_mode():
            outputs = model(*tensors)
        return {head: output.numpy() for head, output in zip(model.interaction.heads, outputs, strict=True)}

    return run


def onnx_runner(graphs: dict[str, Path]) -> Runner:
    """Run the written graphs, three parts or one, with onnxruntime on the CPU.

    int8 products are summed exactly on any processor, so that what is measured here holds where they are served.
    Threads do not spin after a run: torch, whose turn is next, needs the cores.
    """
    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry("session.x64quantprecision", "1")
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    sessions = {
        name: onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        for name, path in graphs.items()
    }

    def run(feeds: Feeds) -> Logits:
        values = {name: getattr(feeds, name) for name in ("input_ids", "patches", "position_ids", "mask")}
        for session in sessions.values():
            wanted = {tensor.name: values[tensor.name] for tensor in session.get_inputs()}
            names = [tensor.name for tensor in session.get_outputs()]
            values.update(zip(names, session.run(names, wanted), strict=True))
        return {name: value for name, value in values.items() if name.endswith("_logits")}

    return run


class _TruePair(nn.Module):
    """The ranking head of a checkpoint that has only a matching head."""

    def forward(self, itm_logits: Tensor) -> Tensor:
        """Shapes: itm_logits (B, 2) -> (B, 1)."""
        return itm_logits[:, TRUE_PAIR, None]


class TransformersOracle:
    """transformers' own classes over the checkpoint's weights, fed with the same pixels."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._spec = checkpoint.config.spec
        config, state = ViltConfig(**checkpoint.raw_config), checkpoint.state
        self._trunk = ViltModel(config).eval()
        _load(
            self._trunk,
            {name.removeprefix("vilt."): value for name, value in state.items() if name.startswith("vilt.")},
        )
        self._heads: dict[str, nn.Module] = {}
        if "classifier.3.weight" in state:
            config.num_labels = len(state["classifier.3.weight"])  # config.json need not name the answers
            self._heads["vqa_logits"] = _load(ViltForQuestionAnswering(config).eval(), state).classifier
        if "itm_score.fc.weight" in state:
            itm = nn.Linear(config.hidden_size, 2)
            _load(itm, {name: state[f"itm_score.fc.{name}"] for name in ("weight", "bias")})
            self._heads["itm_logits"] = itm
            self._heads["rank_logits"] = nn.Sequential(itm, _TruePair())
        if "rank_output.weight" in state:
            self._heads["rank_logits"] = _load(ViltForImageAndTextRetrieval(config).eval(), state).rank_output
        self._mean = torch.tensor(checkpoint.config.image_mean)[:, None, None]
        self._std = torch.tensor(checkpoint.config.image_std)[:, None, None]
        self._rescale = checkpoint.config.rescale_factor

    def run(self, samples: list[Sample]) -> Logits:
        """Run a batch as transformers would: pixels padded at the bottom right, a pixel mask, padded text."""
        height = max(sample.pixels.shape[0] for sample in samples)
        width = max(sample.pixels.shape[1] for sample in samples)
        length = max(len(sample.input_ids) for sample in samples)
        pixel_values = torch.zeros(len(samples), 3, height, width)
        pixel_mask = torch.zeros(len(samples), height, width, dtype=torch.long)
        input_ids = torch.zeros(len(samples), length, dtype=torch.long)
        attention_mask = torch.zeros(len(samples), length, dtype=torch.long)
        for row, sample in enumerate(samples):
            rows, columns, _ = sample.pixels.shape
            pixel_values[row, :, :rows, :columns] = self._normalise(torch.from_numpy(sample.pixels))
            pixel_mask[row, :rows, :columns] = 1
            input_ids[row, : len(sample.input_ids)] = torch.from_numpy(sample.input_ids)
            attention_mask[row, : len(sample.input_ids)] = 1
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # its visual_embed draws patches
            pooled = self._trunk(
                input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values, pixel_mask=pixel_mask
            ).pooler_output
            return {name: head(pooled).numpy() for name, head in self._heads.items()}

    def _normalise(self, pixels: Tensor) -> Tensor:
        return (pixels.permute(2, 0, 1).float() * self._rescale - self._mean) / self._std  # (3, H, W)


def _load(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """Load what the module has; a checkpoint may hold more heads, but may lack nothing."""
    try:
        missing = module.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:  # its last line names a weight and both sizes
        raise ParityError(f"The weights do not fit config.json: {str(error).splitlines()[-1].strip()}") from error
    if missing:
        raise ParityError(f"The checkpoint lacks {', '.join(missing[:3])}: it does not fit transformers' classes.")
    return module


def check(
    checkpoint: Checkpoint, model: Fused, graphs: dict[str, Path], *, progress: Progress = lambda batches: batches
) -> dict[str, float | int]:
    """Compare written graphs with the torch module and with transformers, and batches with their rows alone.

    Raises: ParityError: a difference above FP32_TOLERANCE or BATCH_TOLERANCE, or transformers gives no numbers.
    """
    config = checkpoint.config
    ours, module, oracle = onnx_runner(graphs), torch_runner(model), TransformersOracle(checkpoint)
    found: dict[str, list[float]] = {"torch": [], "transformers": [], "alone": []}
    for samples in progress(list(cases(config, len(checkpoint.state[WORDS])))):
        features = [sample.features(config) for sample in samples]
        feeds = collate(features)
        logits = ours(feeds)
        found["torch"].append(distance(logits, module(feeds)))
        expected = oracle.run(samples)
        if not all(np.isfinite(values).all() for values in expected.values()):
            raise ParityError("The checkpoint's own logits are not numbers: its weights or its image_std are damaged.")
        found["transformers"].append(distance(logits, expected))
        if len(samples) > 1:
            found["alone"].append(distance_from_alone(ours, features, logits))
    from_torch, from_transformers, from_alone = map(_largest, found.values())
    if not (from_torch <= FP32_TOLERANCE and from_transformers <= FP32_TOLERANCE and from_alone <= BATCH_TOLERANCE):
        raise ParityError(
            f"The exported graphs differ from the model: logits by {from_torch:.2e} from the torch module and by"
            f" {from_transformers:.2e} from transformers, with {FP32_TOLERANCE:.0e} allowed, and scores in a batch by"
            f" {from_alone:.2e} from those alone, with {BATCH_TOLERANCE:.0e} allowed."
        )
    return {
        "batches": len(found["torch"]),
        "max_logit_difference_to_torch": from_torch,
        "max_logit_difference_to_transformers": from_transformers,
        "tolerance": FP32_TOLERANCE,
        "max_score_difference_to_alone": from_alone,
        "tolerance_to_alone": BATCH_TOLERANCE,
    }


def compare(
    checkpoint: Checkpoint, ours: Runner, reference: Runner, *, with_batches: bool = False
) -> dict[str, float | int]:
    """Return the largest logit difference between a lower precision and fp32, alone and, if asked to, in batches.

    There is no limit, but every logit must be finite.

    Raises: ParityError: a logit is not finite.
    """
    differences = []
    for samples in cases(checkpoint.config, len(checkpoint.state[WORDS])):
        if len(samples) == 1 or with_batches:
            feeds = collate([sample.features(checkpoint.config) for sample in samples])
            differences.append(distance(ours(feeds), reference(feeds)))
    if not np.isfinite(differences).all():
        raise ParityError("In this precision some logits are not numbers: weights or activations are too large for it.")
    return {"inputs": len(differences), "max_logit_difference_to_fp32": max(differences)}


def distance(ours: Logits, theirs: Logits) -> float:
    """Return the largest |logit difference| of the heads that we have; NaN if there is one."""
    return _largest([np.abs(logits - theirs[head]).max() for head, logits in ours.items()])


def distance_from_alone(run: Runner, batch: Sequence[Features], logits: Logits) -> float:
    """Return the largest |score difference| between the rows of a batch and the same rows alone, without padding."""
    alone = np.concatenate([scores(run(collate([features]))) for features in batch])
    return float(np.abs(scores(logits) - alone).max())


def scores(logits: Logits) -> NDArray[np.float64]:
    """Turn the logits of all heads into scores, as the server does.

    Shapes: each (B, labels) -> (B, scores).
    """
    of_heads = [
        [[matching_score(row)] if head == "itm_logits" else sigmoids(row) for row in rows]
        for head, rows in logits.items()
    ]
    return np.concatenate(of_heads, axis=1)


def _largest(values: Sequence[float]) -> float:
    return float(np.max(values))  # unlike max(), NaN if there is one
