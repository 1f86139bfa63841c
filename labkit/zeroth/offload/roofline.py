"""How long a step has to take: the bus or the arithmetic, whichever is slower, and where they cross.

    t_bus      = P↓ / B₂ + (P↑ − P↓) / B₁         P↑ bytes up, P↓ = P↑ / k down; B₁ one way alone, B₂ each way at once
    t_compute  = 2 T f + (2 + (k + 1) / 2) z      T tokens, f seconds a token and pass, z seconds to make noise for
                                                  all weights once: for both sides, and for the moves that are due

While P↓ bytes go down, as many come up, both at B₂; the other uploads have the bus to themselves. A step takes about
the larger one. From T* = (t_bus − (2 + (k + 1) / 2) z) / 2 f tokens on, arithmetic hides the bus. For k = 1 a model in
host memory then trains as fast as one on the device, in 2 T f + 3 z; for larger k it makes (k − 1) / 2 passes of noise
more. Writing back less often takes load off the bus and puts it on the arithmetic: k is best where the two are equal,
and beyond the crossing k = 1 is. That the bus has work all the time takes slots enough for what passes under the head
and the embedding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from labkit.errors import LabError


@dataclass(frozen=True)
class Machine:
    """What a step's time follows from.

    Attributes:
        up, both: GB/s (10^9 bytes a second) of uploads alone, and of uploads while as much goes down.
        token_us: microseconds of one pass for one token, f.
        noise_ms: milliseconds to make noise for all weights and add it, z.
    """

    up: float
    both: float
    token_us: float
    noise_ms: float

    def __post_init__(self) -> None:
        if min(self.up, self.both) <= 0 or min(self.token_us, self.noise_ms) < 0:
            raise LabError(f"{self} is no machine.", "Give positive rates and times.")

    def bus_ms(self, uploaded: int, write_back: int) -> float:
        """t_bus for so many bytes up; `write_back` of 0 for none down."""
        down = uploaded / write_back if write_back else 0.0
        return (down / self.both + (uploaded - down) / self.up) / 1e6

    def passes(self, write_back: int, trains: bool = True) -> float:
        """How often noise is made for every weight in a step, in the mean."""
        return 2 + (write_back + 1) / 2 if trains else 0.0

    def compute_ms(self, tokens: int, write_back: int, trains: bool = True) -> float:
        """t_compute."""
        return 2 * tokens * self.token_us / 1e3 + self.passes(write_back, trains) * self.noise_ms

    def step_ms(self, uploaded: int, tokens: int, write_back: int = 1) -> float:
        """The larger of the two."""
        return max(self.bus_ms(uploaded, write_back), self.compute_ms(tokens, write_back))

    def crossing(self, uploaded: int, write_back: int = 1) -> float:
        """T*, in tokens; 0 where the bus never decides."""
        left = self.bus_ms(uploaded, write_back) - self.passes(write_back) * self.noise_ms
        return max(0.0, left / (2 * self.token_us / 1e3))

    def best_write_back(self, uploaded: int, tokens: int, choices: Iterable[int] = (1, 2, 3, 4, 6, 8, 12, 16)) -> int:
        """The k of the shortest step; of equal ones the smallest."""
        return min(choices, key=lambda k: (self.step_ms(uploaded, tokens, k), k))
