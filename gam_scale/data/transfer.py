"""Copy a step's micro-batches to a GPU, each while the one before it is computed."""

from collections.abc import Iterator, Sequence

import torch

from gam_scale.data.packing import Batch


class Transfer:
    """Copies batches to ``device``, for CUDA on a stream of its own, and for a CPU not at all."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def prepare(self, batch: Batch) -> Batch:
        """Return ``batch`` in page-locked memory, from where a GPU can fetch it by itself.

        The thread that loads batches calls this. A copy from other memory would make the host wait
        for the GPU.
        """
        if self._stream is None:
            return batch
        with torch.cuda.device(self._device):  # a new thread uses the first GPU
            return batch.pin()

    def __call__(self, batches: Sequence[Batch]) -> Iterator[Batch]:
        """Yield the batches on the device, ready for what its current stream computes next."""
        if self._stream is None:
            on_cpu = self._device.type == "cpu"
            yield from batches if on_cpu else (batch.to(self._device) for batch in batches)
            return
        sent = self._send(batches[0])
        for following in (*batches[1:], None):
            batch, copied = sent
            if following is not None:
                sent = self._send(following)
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(copied)
            # The memory is the copying stream's: a next copy may reuse it only after the batch.
            batch.record_stream(computing)
            yield batch

    def _send(self, batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        assert self._stream is not None
        with torch.cuda.stream(self._stream):
            batch = batch.to(self._device)
            return batch, self._stream.record_event()
