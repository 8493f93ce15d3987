"""What a `Batcher` counts."""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass
class BatcherStats:
    """What was done for an endpoint so far, and what waits now.

    Args:
        requests: Requests answered.
        rows: Rows computed.
        batches: Batches run; of a loop, times that a few steps were taken.
        queue_seconds: Time that requests waited until their first row was under way, summed.
        compute_seconds: Time that batches took, copies included, summed.
        request_seconds: Time from submission to the answer, summed over requests answered.
        input_seconds: Time that it took to put their batches together, summed over requests.
        infer_seconds: Time that their batches were executed, summed over requests.
        output_seconds: Time that it took to share out what their batches gave, summed over requests.
        failed: Requests that ended with an error.
        cancelled: Requests that were given up, by their callers or by `close(drain=False)`.
        expired: Requests whose timeout passed before any row was under way; of a loop, before they were done.
        overloaded: Requests that the full queue refused.
        queued_requests: Requests of which rows wait now.
        queued_rows: Rows that wait now.
        rows_in_flight: Rows that are being computed now.
        steps: Steps that batches of a loop took.
        row_steps: Those of their rows, summed.
        cancelled_rows: Rows of a loop that left before they were done, since nobody wants them any more.
        expired_rows: Rows that did since they were late.
        failed_rows: Rows that did since another of their request failed.
        previewed: Requests of which there was a preview.
        preview_seconds: Time from submission to the first preview, summed over them.
        places: Places for rows in the batches of a loop that there are now.
    """

    requests: int = 0
    rows: int = 0
    batches: int = 0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    request_seconds: float = 0.0
    input_seconds: float = 0.0
    infer_seconds: float = 0.0
    output_seconds: float = 0.0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    overloaded: int = 0
    queued_requests: int = 0
    queued_rows: int = 0
    rows_in_flight: int = 0
    steps: int = 0
    row_steps: int = 0
    cancelled_rows: int = 0
    expired_rows: int = 0
    failed_rows: int = 0
    previewed: int = 0
    preview_seconds: float = 0.0
    places: int = 0

    def __add__(self, other: BatcherStats) -> BatcherStats:
        return BatcherStats(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def rows_per_batch(self) -> float:
        """Mean number of rows a batch."""
        return self.rows / self.batches if self.batches else 0.0
