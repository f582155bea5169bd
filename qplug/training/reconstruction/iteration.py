"""One iteration of the reconstruction of a block, on tensors that stay in their places."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qplug.core.errors import PluginError
from qplug.quantization.quantizers import Quantizer
from qplug.training.learners import Learner
from qplug.training.reconstruction.capture import Calls
from qplug.training.reconstruction.config import Reconstruction
from qplug.training.reconstruction.losses import OutputLoss
from qplug.training.reconstruction.objective import Minimized, Objective, compiled

EAGER = 3
"""Iterations before a CUDA graph is captured, in which libraries allocate and choose kernels, as torch advises."""


class Step:
    """Called for every iteration, with ``images`` and ``beta`` written before.

    Args:
        block: the lowered block, whose learners alone have gradients.
        settings: learners, λ, QDrop's share, and whether iterations are compiled.
        calls: what the float block is given and gives.
        inputs: (entries, …) what the quantized model before it gives, where ``calls`` are.
        loss: of the block's output, prepared, where ``calls`` are.
        optimizer: of the learners' parameters.
        batch: entries of an iteration.
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
        objective = Objective(block, settings.learners.values(), loss, settings.weight)
        self._objective: Minimized = compiled(objective) if settings.compile else objective
        self.device = next(block.parameters()).device
        self.images = torch.zeros(batch, dtype=torch.int64, device=inputs.device)
        self.beta = torch.zeros((), device=self.device)
        self.finite = torch.zeros((), dtype=torch.int64, device=self.device)
        """Iterations whose error was finite."""

    def __call__(self, penalized: bool) -> None:
        """One iteration of Adam, on the block's error and, where ``penalized``, on its soft bits."""
        images = self.images
        given = self._inputs[images].to(self.device)
        if self._keep < 1.0:
            given = mix(given, self._calls.inputs[images].to(self.device), self._keep)
        args, kwargs = self._calls.arguments(given, images)
        expected = self._calls.outputs[images].to(self.device)
        with torch.enable_grad():
            minimized, error = self._objective(args, kwargs, expected, images, self.beta if penalized else None)
            self.finite += torch.isfinite(error)
            self._optimizer.zero_grad()
            minimized.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()


class Graphed:
    """The iterations of a ``Step`` as replays of a CUDA graph: a block's kernels take longer to launch than to run.

    The first ``EAGER`` iterations of each kind are computed as they come. The last of them tells whether a learner, a
    quantizer or the block waits for the host, which a graph cannot hold: a capture that breaks off would leave the
    device's random generator broken. Raises ``PluginError`` then.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._stream = torch.cuda.Stream(step.device)  # type: ignore[no-untyped-call]
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        self._seen = {False: 0, True: 0}

    def __call__(self, penalized: bool) -> None:
        """One iteration."""
        self._seen[penalized] += 1
        if self._seen[penalized] <= EAGER:
            self._stream.wait_stream(torch.cuda.current_stream(self._step.device))
            with torch.cuda.stream(self._stream), _refuse_waiting(self._seen[penalized] == EAGER):
                self._step(penalized)
            torch.cuda.current_stream(self._step.device).wait_stream(self._stream)
            return
        if penalized not in self._graphs:
            self._graphs[penalized] = self._capture(penalized)
        self._graphs[penalized].replay()

    def _capture(self, penalized: bool) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._step(penalized)
        return graph


@contextmanager
def _refuse_waiting(refuse: bool) -> Iterator[None]:
    """Within it, whatever waits for the device raises ``PluginError``, if it shall."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error" if refuse else before)
    try:
        yield
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        raise PluginError(
            "an iteration waits for the device, and cannot be replayed as a CUDA graph",
            fix="let no learner or quantizer ask the device for a number, or answer with graph=False",
        ) from error
    finally:
        torch.cuda.set_sync_debug_mode(before)


class Dropped(Learner):
    """QDrop (Wei et al. 2022, Eq. 8): each element is quantized with probability ``keep`` and else passes in float."""

    def __init__(self, quantizer: Quantizer, keep: float) -> None:
        super().__init__()
        self.quantizer, self.keep = quantizer, keep
        self.bits = quantizer.bits

    def forward(self, x: Tensor) -> Tensor:
        """A mixture of ``x`` and of ``x`` fake-quantized, drawn anew."""
        return mix(self.quantizer(x), x, self.keep)


def mix(quantized: Tensor, float_: Tensor, keep: float) -> Tensor:
    """Each element from ``quantized`` with probability ``keep``, and else from ``float_``."""
    return torch.where(torch.rand_like(float_) < keep, quantized, float_)
