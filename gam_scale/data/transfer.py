"""A step's micro-batches on their way to a GPU, each sent while the one before is computed."""

from collections.abc import Iterator, Sequence

import torch

from gam_scale.data.packing import Batch


class Transfer:
    """Copies to ``device``, on a stream of its own; on a CPU batches are where they belong."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def prepare(self, batch: Batch) -> Batch:
        """``batch`` where a GPU can fetch it by itself: in page-locked memory.

        For the thread that loads batches. A copy from other memory has the host wait for the GPU.
        """
        if self._stream is None:
            return batch
        with torch.cuda.device(self._device):  # a thread begins at the first GPU
            return batch.pin()

    def __call__(self, batches: Sequence[Batch]) -> Iterator[Batch]:
        """The batches on the device, for what its current stream computes from then on."""
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
            # Memory of the copying stream: not for its next copy before this one is used up.
            batch.record_stream(computing)
            yield batch

    def _send(self, batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        assert self._stream is not None
        with torch.cuda.stream(self._stream):
            batch = batch.to(self._device)
            return batch, self._stream.record_event()
