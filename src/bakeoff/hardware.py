"""A device as a prediction of time knows it, and the seconds that operators take there."""

from __future__ import annotations

from dataclasses import dataclass

from bakeoff.measure.work import Operators
from bakeoff.ranges import VAST, number


@dataclass
class Hardware:
    """The device whose time a prediction states, by data sheet or by `make calibrate`; none where it has no name.

    name              name of the device
    float32_tflops    dense matrix products in float32, without TF32
    bfloat16_tflops   dense matrix products in bfloat16
    bandwidth_gb      bytes that the device reads and writes in a second, in 10⁹
    memory_gb         bytes that the device holds, in 10⁹; 0: not stated
    efficiency        share of these rates that operators reach
    launch_us         time of a launch in addition to the operator's work, Python's included
    queues            whether the host launches operators while the device still works on earlier ones
    calibrated        whether the rates were measured on such a device
    source            where the figures are from
    """

    name: str = ""
    float32_tflops: float = number(1.0, above=0, most=VAST, unit="10¹² operations per second")
    bfloat16_tflops: float = number(1.0, above=0, most=VAST, unit="10¹² operations per second")
    bandwidth_gb: float = number(1.0, above=0, most=VAST, unit="GB per second")
    memory_gb: float = number(0.0, least=0, most=VAST, unit="GB")
    efficiency: float = number(1.0, above=0, most=1)
    launch_us: float = number(0.0, least=0, most=VAST, unit="µs")
    queues: bool = False
    calibrated: bool = False
    source: str = ""

    @property
    def trust(self) -> str:
        """How far the rates can be trusted, in a word that stands beside every time and price."""
        return "calibrated" if self.calibrated else "uncalibrated"

    def seconds(self, operators: Operators) -> float:
        """Seconds of a phase's operators, one after another; each overlaps its arithmetic with its memory traffic.

        Launches add to this work; where the device queues them, only the longer of the two counts.
        """
        work = 0.0
        for operator, times in operators.items():
            tflops = self.bfloat16_tflops if operator.half else self.float32_tflops
            work += times * max(operator.flops / (tflops * 1e12), operator.bytes / (self.bandwidth_gb * 1e9))
        launches = sum(operators.values()) * self.launch_us * 1e-6
        return max(work / self.efficiency, launches) if self.queues else work / self.efficiency + launches
