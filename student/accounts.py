"""What a client counts: crops that may still be submitted, and what it has seen so far. Plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from teacherfarm.student.sizing import LoadSum


@dataclass(kw_only=True)
class ClientStats:
    """What a client has seen so far. A batch that its user gave up is asked, and counted no further.

    ``load``: how busy its teacher was, as the servers told.
    """

    crops_asked: int = 0
    crops_answered: int = 0
    crops_starved: int = 0
    crops_failed: int = 0
    crops_resent: int = 0
    late_answers: int = 0
    sessions: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    load: LoadSum = field(default_factory=LoadSum)


class Room:
    """Crops that may still be submitted: given at submit, taken back when the labels were collected."""

    def __init__(self, window_crops: int) -> None:
        if window_crops < 1:
            raise ValueError(f"window must be at least 1 crop, got {window_crops}")
        self.window_crops = window_crops
        self.used_crops = 0

    @property
    def free_crops(self) -> int:
        return max(0, self.window_crops - self.used_crops)

    def take(self, num_crops: int) -> bool:
        """Whether there was room; a batch larger than the whole window gets in alone."""
        if self.used_crops and self.used_crops + num_crops > self.window_crops:
            return False
        self.used_crops += num_crops
        return True

    def give_back(self, num_crops: int) -> None:
        """The labels of so many crops were collected, or nobody wants them."""
        self.used_crops -= num_crops
