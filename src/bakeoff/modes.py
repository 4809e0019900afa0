"""What a run does in a mode beside training: it measures the method's gradient or advantages, or predicts its cost."""

from __future__ import annotations

from rich.table import Table

from bakeoff.attribution import KINDS, ROLES, Label
from bakeoff.config import Config, Mode
from bakeoff.cost import cost_of
from bakeoff.measure.phase import Peak
from bakeoff.measure.work import Operators
from bakeoff.metrics import named, peak_metrics, predicted_seconds, weight_metrics
from bakeoff.predict import Prediction, predict, sizes_of
from bakeoff.progress import RunProgress
from bakeoff.quality.advantage import advantage_quality
from bakeoff.quality.gradient import gradient_quality
from bakeoff.run import Run
from bakeoff.terminal import megabytes, plain_table
from bakeoff.tracking import Tracker


def measure_quality(run: Run) -> float:
    """Logs the quality of the method's gradient or advantages; returns the mean cosine or the correlation."""
    config, tracker = run.config, run.tracker
    tracker.tags({"kind": config.mode.value})
    if config.mode is Mode.gradient_quality:
        gradient = gradient_quality(run.loop, config.quality, run.progress.report)
        metrics, result = named("gradient/", gradient), gradient.cosine
    else:
        advantage, positions = advantage_quality(run.loop, config.quality, run.progress.report)
        metrics, result = named("advantage/", advantage), advantage.correlation
        for position, here in positions.items():
            at = {f"{name}_by_position": value for name, value in named("advantage/", here).items()}
            tracker.metrics(at, position)
    tracker.metrics(metrics, 0)
    run.progress.report(", ".join(f"{name} {value:.3g}" for name, value in metrics.items()))
    return result


def log_prediction(config: Config, tracker: Tracker, progress: RunProgress) -> float:
    """Logs and shows the predicted ledger; returns its peak in MB."""
    prediction = predict(config)
    tracker.tags({"kind": "prediction"})
    tracker.metrics(peak_metrics(prediction.peaks) | weight_metrics(prediction.weight_bytes), 0)
    each = f" on each of {config.processes} devices" if config.processes > 1 else ""
    title = f"{sizes_of(config, prediction)}; peak {megabytes(prediction.peak)}{each}"
    progress.show(ledger_table(prediction.peaks, title))
    if config.hardware.name:
        log_cost(config, prediction, tracker, progress)
    else:
        progress.show("for hours and price, add hardware=NAME (conf/hardware); `make calibrate` measures this machine")
    return prediction.peak / 1e6


def log_cost(config: Config, prediction: Prediction, tracker: Tracker, progress: RunProgress) -> None:
    """Logs and shows seconds of an update, and hours and price of the budget, on the hardware."""
    cost, hardware, budget = cost_of(config, prediction), config.hardware, config.budget
    tracker.tags({"hardware": hardware.name, "calibrated": str(hardware.calibrated).lower()})
    tracker.metrics(predicted_seconds(cost.seconds, cost.hours), 0)
    progress.show(
        cost_table(prediction.work, cost.seconds, f"one update on {hardware.name}", f"seconds ({hardware.trust})")
    )
    price = f", {cost.price:,.2f} ({hardware.trust}) at {config.price:g} an hour" if config.price else ""
    room = hardware.memory_gb * 1e9
    small = f" It does not fit: the peak is {megabytes(prediction.peak)}, the device has {megabytes(room)}."
    progress.show(
        f"{hardware.name}: {cost.hours:,.3g} hours ({hardware.trust}){price} for {cost.updates:,} updates, which use "
        f"budget.limit={budget.limit:g} {budget.unit.value}; the supervised start, evaluation, checkpoints and code "
        f"that scores are not included.{small if 0 < room < prediction.peak else ''}",
        highlight=False,
    )


def ledger_table(peaks: dict[str, Peak], title: str) -> Table:
    """A row a phase: its peak, and what each role holds of each kind there."""
    table = plain_table(title, ("role", "kind"), [phase.replace("_", " ") for phase in peaks])
    for label in (Label(role, kind) for role in ROLES for kind in KINDS):
        sizes = [peak.cells.get(label, 0) for peak in peaks.values()]
        if any(sizes):
            table.add_row(*label, *(megabytes(size) if size else "" for size in sizes))
    table.add_section()
    table.add_row("[bold]peak", "", *(f"[bold]{megabytes(peak.allocated)}" for peak in peaks.values()))
    return table


def cost_table(work: dict[str, Operators], seconds: dict[str, float], title: str, unit: str) -> Table:
    """A row a phase of an update: its floating-point operations, bytes, operators and seconds."""
    table = plain_table(title, ("phase",), ("GFLOP", "GB", "operators", unit))
    for phase, operators in work.items():
        flops = sum(operator.flops * times for operator, times in operators.items())
        moved = sum(operator.bytes * times for operator, times in operators.items())
        launches = sum(operators.values())
        sizes = f"{flops / 1e9:,.1f}", f"{moved / 1e9:,.1f}", f"{launches:,.0f}"
        table.add_row(phase.replace("_", " "), *sizes, f"{seconds[phase]:,.3f}")
    table.add_section()
    table.add_row("[bold]update", "", "", "", f"[bold]{sum(seconds.values()):,.3f}")
    return table
