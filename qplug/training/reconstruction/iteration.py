"""One iteration of a block's reconstruction, eager or as a CUDA graph; its tensors keep their addresses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qplug.core.errors import InputError, PluginError
from qplug.quantization.quantizers import Quantizer
from qplug.training.learners import Learner
from qplug.training.reconstruction.capture import Calls
from qplug.training.reconstruction.config import Reconstruction
from qplug.training.reconstruction.losses import OutputLoss
from qplug.training.reconstruction.objective import Minimized, ReconstructionObjective, compiled

EAGER_ITERATIONS = 3
"""Eager iterations before a CUDA graph is captured, in which libraries allocate and choose kernels (torch's advice)."""


class Iteration:
    """One iteration of Adam. The caller writes ``images`` and ``beta`` before each call.

    Args:
        block: the lowered block, in which only the learners have gradients.
        settings: learners, λ, QDrop's share, and whether iterations are compiled.
        calls: inputs and outputs of the float block.
        inputs: (entries, …) inputs of the block in the quantized model, on the device of ``calls``.
        loss: loss of the block's output, prepared, on the device of ``calls``.
        optimizer: optimizer of the learners' parameters.
        batch: entries per iteration.
    """

    def __init__(
        self,
        block: nn.Module,
        settings: Reconstruction,
        calls: Calls,
        inputs: Tensor,
        loss: OutputLoss,
        optimizer: torch.optim.Optimizer,
        batch: int,
    ) -> None:
        self._keep, self._calls, self._inputs, self._optimizer = settings.keep, calls, inputs, optimizer
        objective = ReconstructionObjective(block, settings.learners.values(), loss, settings.weight)
        self._objective: Minimized = compiled(objective) if settings.compile else objective
        self.device = next(block.parameters()).device
        self.images = torch.zeros(batch, dtype=torch.int64, device=inputs.device)
        self.beta = torch.zeros((), device=self.device)
        self.finite = torch.zeros((), dtype=torch.int64, device=self.device)
        """Number of iterations with a finite error."""

    def __call__(self, penalized: bool) -> None:
        """Minimize the block's error and, if ``penalized``, the penalty of its soft bits."""
        images = self.images
        inputs = self._inputs[images].to(self.device)
        if self._keep < 1.0:
            inputs = mix_at_random(inputs, self._calls.inputs[images].to(self.device), self._keep)
        args, kwargs = self._calls.arguments(inputs, images)
        expected = self._calls.outputs[images].to(self.device)
        with torch.enable_grad():
            minimized, error = self._objective(args, kwargs, expected, images, self.beta if penalized else None)
            self.finite += torch.isfinite(error)
            if not minimized.requires_grad:
                raise InputError(
                    "the block is learned by gradients, and its outputs have none: torch.no_grad(), "
                    "torch.inference_mode() or detach() in its forward",
                    fix="remove it from the forward, or leave this block out of the technique",
                )
            self._optimizer.zero_grad()
            minimized.backward()
        self._optimizer.step()


class GraphedIteration:
    """An ``Iteration`` as replays of a CUDA graph: launching a block's kernels takes longer than running them.

    There are two graphs, with and without the penalty. The first ``EAGER_ITERATIONS`` of each are eager. The last of
    them checks whether a learner, a quantizer or the block synchronizes with the host, which a graph cannot do. The
    check precedes the capture, because a failed capture leaves the device's random generator in an invalid state.

    Raises:
        PluginError: an iteration synchronizes with the host.
    """

    def __init__(self, iteration: Iteration) -> None:
        self._iteration = iteration
        self._stream = torch.cuda.Stream(iteration.device)
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        self._calls = {False: 0, True: 0}

    def __call__(self, penalized: bool) -> None:
        """One iteration."""
        self._calls[penalized] += 1
        if self._calls[penalized] <= EAGER_ITERATIONS:
            self._stream.wait_stream(torch.cuda.current_stream(self._iteration.device))
            refuse = self._calls[penalized] == EAGER_ITERATIONS
            with torch.cuda.stream(self._stream), _refuse_synchronization(refuse):
                self._iteration(penalized)
            torch.cuda.current_stream(self._iteration.device).wait_stream(self._stream)
            return
        if penalized not in self._graphs:
            self._graphs[penalized] = self._capture(penalized)
        self._graphs[penalized].replay()

    def _capture(self, penalized: bool) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._iteration(penalized)
        return graph


@contextmanager
def _refuse_synchronization(refuse: bool) -> Iterator[None]:
    """A context in which a synchronization with the device raises ``PluginError``, if ``refuse`` is set."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error" if refuse else before)
    try:
        yield
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        raise PluginError(
            "a CUDA graph cannot replay an iteration that synchronizes with the device",
            fix="read no value from the device in a learner or quantizer, or return Reconstruction(graph=False)",
        ) from error
    finally:
        torch.cuda.set_sync_debug_mode(before)


class QDropQuantizer(Learner):
    """QDrop (Wei et al. 2022, Eq. 8): an element is quantized with probability ``keep``, else it stays in float."""

    def __init__(self, quantizer: Quantizer, keep: float) -> None:
        super().__init__()
        self.quantizer, self.keep = quantizer, keep
        self.bits = quantizer.bits

    def forward(self, x: Tensor) -> Tensor:
        """A random mixture of the float and the fake-quantized elements of ``x``."""
        return mix_at_random(self.quantizer(x), x, self.keep)


def mix_at_random(quantized: Tensor, float_: Tensor, keep: float) -> Tensor:
    """Each element from ``quantized`` with probability ``keep``, and from ``float_`` otherwise."""
    return torch.where(torch.rand_like(float_) < keep, quantized, float_)
