"""What a run does in a mode beside training: it measures the method's gradient or advantages, or predicts its cost."""

from __future__ import annotations

from bakeoff.config import Config, Mode
from bakeoff.cost import cost_of
from bakeoff.metrics import named, peak_metrics, predicted_seconds, weight_metrics
from bakeoff.predict import Prediction, predict, sizes_of
from bakeoff.progress import RunProgress, cost_table, ledger_table, megabytes
from bakeoff.quality.advantage import advantage_quality
from bakeoff.quality.gradient import gradient_quality
from bakeoff.run import Run
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
    trust = "calibrated" if hardware.calibrated else "uncalibrated"
    tracker.tags({"hardware": hardware.name, "calibrated": str(hardware.calibrated).lower()})
    tracker.metrics(predicted_seconds(cost.seconds, cost.hours), 0)
    progress.show(cost_table(prediction.work, cost.seconds, f"one update on {hardware.name}", f"seconds ({trust})"))
    price = f", {cost.price:,.2f} ({trust}) at {config.price:g} an hour" if config.price else ""
    room = hardware.memory_gb * 1e9
    small = f" It does not fit: the peak is {megabytes(prediction.peak)}, the device has {megabytes(room)}."
    progress.show(
        f"{hardware.name}: {cost.hours:,.3g} hours ({trust}){price} for {cost.updates:,} updates, which use "
        f"budget.limit={budget.limit:g} {budget.unit.value}; the supervised start, evaluation, checkpoints and code "
        f"that scores are not included.{small if 0 < room < prediction.peak else ''}",
        highlight=False,
    )
