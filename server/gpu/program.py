"""onnxruntime on a GPU: sessions, tensors on the device, captured graphs. With engine.py, all that imports it."""

import contextlib
import io
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from models.batch import Feeds
from models.errors import ArtifactError
from models.manifest import CUDA, KERNELS, STANDARD, Artifact, Manifest
from server.engine import count_threads, session_options
from server.gpu import kernels, libraries, options
from server.gpu.buckets import Bucket, buckets_of, profiles_of, span
from server.gpu.copies import Copies, pinned
from server.gpu.engine import SLOTS, GpuEngine
from server.gpu.libraries import MissingError, ProviderError
from server.types import Logits

log = logging.getLogger(__name__)

# Must not be left to another provider.
COMPUTED = {
    "Attention",
    "MatMul",
    "Gemm",
    "LayerNormalization",
    "SkipLayerNormalization",
    "Gelu",
    "AddNorm",
    "BiasGelu",
}
KINDS = {"input_ids": np.int64, "patches": np.uint8, "position_ids": np.int64, "mask": np.bool_}
Provider = tuple[str, options.Options]


@dataclass(frozen=True, slots=True)
class Bound:
    """Tensors on the device, bound to a session, and the options of a run that replays their graph."""

    binding: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    run: Any


class OrtProgram:
    """A session with its tensors for each bucket and slot, which are made on first use, during warm-up.

    Copies have their own streams, which no run waits for, and each ends before the next step begins. So does a run:
    at its end, and after a replay, onnxruntime waits for its stream, unless `disable_synchronize_execution_providers`
    is set.

    Source: onnxruntime, CUDAExecutionProvider::OnRunEnd and CUDAGraphManager::Replay.
    """

    def __init__(
        self,
        session: Any,
        buckets: list[Bucket],
        heads: dict[str, int],
        patch_values: int,
        *,
        device: str,
        copies: Copies,
    ) -> None:
        self._session, self._buckets, self._heads = session, buckets, heads
        self._patch_values, self._device, self._copies = patch_values, device, copies
        self._bound: dict[tuple[Bucket, int], Bound] = {}

    def copy_in(self, bucket: Bucket, slot: int, tensors: Feeds) -> None:
        """Copy a bucket's tensors to the device."""
        inputs = self._of(bucket, slot).inputs
        self._copies.to_gpu([(value.data_ptr(), getattr(tensors, name)) for name, value in inputs.items()])

    def run(self, bucket: Bucket, slot: int) -> None:
        """Run the copied batch and wait for its end; the first run captures the graph, later ones replay it."""
        bound = self._of(bucket, slot)
        self._session.run_with_iobinding(bound.binding, bound.run)

    def copy_out(self, bucket: Bucket, slot: int, logits: Logits) -> None:
        """Fill arrays with every head's logits from that run."""
        outputs = self._of(bucket, slot).outputs
        self._copies.from_gpu([(value.data_ptr(), logits[head]) for head, value in outputs.items()])

    def _of(self, bucket: Bucket, slot: int) -> Bound:
        if (bucket, slot) not in self._bound:
            self._bound[bucket, slot] = self._bind(bucket, slot)
        return self._bound[bucket, slot]

    def _bind(self, bucket: Bucket, slot: int) -> Bound:
        def tensor(shape: tuple[int, ...], kind: Any) -> Any:
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, self._device, 0)

        shapes = bucket.shapes(self._patch_values)
        inputs = {name: tensor(shape, KINDS[name]) for name, shape in shapes.items()}
        outputs = {head: tensor((bucket.batch, width), np.float32) for head, width in self._heads.items()}
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        run = onnxruntime.RunOptions()
        run.add_run_config_entry("gpu_graph_id", options.graph_id(self._buckets, bucket, slot, SLOTS))
        return Bound(binding, inputs, outputs, run)


def open_engine(artifact: Artifact, provider: str, *, most: int, cache: Path) -> GpuEngine:
    """Load an artifact's fp16 graph on a GPU; TensorRT first builds its engines, for minutes, unless they are cached.

    Raises: MissingError: something that the provider needs is missing; ProviderError: it does not do all of the work;
        ArtifactError: it cannot load the graph, or there is none.
    """
    whole = graph_name(artifact.manifest, provider)
    (graph,) = artifact.opened(whole).values()
    log.info("%s runs %s", provider, graph.file)
    name = options.NAMES[provider]
    if name not in onnxruntime.get_available_providers():
        raise MissingError(
            f"This onnxruntime has no {name}: pip install 'vilt-server[{libraries.EXTRAS[provider]}]' in an environment"
            " without the onnxruntime package, which it replaces."
        )
    onnxruntime.set_default_logger_severity(3)  # errors only; it would warn of a plugin that nobody requested
    with contextlib.redirect_stdout(io.StringIO()):  # it prints advice; `require` says what is missing
        onnxruntime.preload_dlls()
    libraries.require(provider, Path(onnxruntime.__file__).parent / "capi")
    driver, cudart = libraries.load(libraries.DRIVER), libraries.load(libraries.CUDART)
    gpu = libraries.gpu_name(driver)
    spec = artifact.manifest.spec
    buckets = buckets_of(spec, most)
    thread, copies = ThreadPoolExecutor(1, "gpu"), Copies(cudart)

    def program(providers: list[Provider], operators: Path | None = None) -> OrtProgram:
        session = thread.submit(open_session, artifact.folder / graph.file, providers, operators).result()
        return OrtProgram(session, buckets, artifact.manifest.heads, spec.patch_values, device="cuda", copies=copies)

    if provider == "cuda":
        packages = Path(onnxruntime.__file__).parents[1]
        operators = kernels.operators(driver, libraries.require_nvrtc(packages)) if whole == KERNELS else None
        programs = [(span(buckets, tuned=buckets[0]), program([(options.CUDA, options.cuda())], operators))]
    else:
        programs = []
        version = libraries.tensorrt_version(libraries.load(libraries.TENSORRT[0]))
        profiles = profiles_of(spec, most)
        for number, profile in enumerate(profiles, 1):
            key = options.EngineKey(
                gpu=gpu,
                tensorrt=version,
                onnxruntime=onnxruntime.__version__,
                graph=graph.sha256,
                profile=profile,
            )
            is_built = any(options.engine_folder(cache, key).glob("*.engine"))
            log.info("TensorRT engine %d of %d, %s: %s", number, len(profiles), "kept" if is_built else "new", profile)
            settings = options.tensorrt(key, cache, spec.patch_values)
            Path(settings["trt_engine_cache_path"]).mkdir(parents=True, exist_ok=True)
            behind = options.cuda(captures=False)
            programs.append((profile, program([(options.TENSORRT, settings), (options.CUDA, behind)])))
    return GpuEngine(
        programs,
        buckets,
        spec,
        artifact.manifest.heads,
        provider=provider,
        version=onnxruntime.__version__,
        device=gpu,
        allocate=lambda shape: pinned(cudart, shape),
        thread=thread,
    )


def graph_name(manifest: Manifest, provider: str) -> str:
    """Choose the fp16 graph for a provider: TensorRT knows only standard operators, CUDA runs ours if there are any."""
    if provider == "tensorrt":
        return STANDARD
    return KERNELS if KERNELS in manifest.precisions["fp16"].graphs else CUDA


def open_session(graph: Path, providers: list[Provider], operators: Path | None = None) -> Any:
    """Open a session in which the first provider does all of the work, with a library of operators.

    Raises: ProviderError: it does not; ArtifactError: the graph cannot be loaded.
    """
    settings = session_options(count_threads(0))
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        if operators:
            settings.register_custom_ops_library(str(operators))
        session = onnxruntime.InferenceSession(str(graph), settings, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime raises its own types, without a common base
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"onnxruntime {onnxruntime.__version__} cannot load {graph}: {reason}") from error
    wanted = providers[0][0]
    if session.get_providers()[0] != wanted:
        raise ProviderError(f"onnxruntime did not start {wanted}, but {session.get_providers()[0]}.")
    elsewhere = {
        f"{node.op_type} to {part.ep_name}"
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
        if part.ep_name != wanted and node.op_type in COMPUTED
    }
    if elsewhere:
        raise ProviderError(f"{wanted} left {', '.join(sorted(elsewhere))}: that would be slow, so it is not served.")
    return session
