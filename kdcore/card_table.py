"""The numbers of the model card: the table, and what is said below it."""

from collections.abc import Mapping
from typing import Any


def explained(result: Mapping[str, Any]) -> str:
    """What the rows of the table mean that do not speak for themselves."""
    sentences = []
    if "agreement" in result["student"]:
        sentences.append(
            "Agreement is the share of test samples on which the model predicts what the teacher predicts."
        )
    if "ece_bins" in result["student"]:
        bins = f"Expected calibration error: {result['student']['ece_bins']} bins of equal width"
        sentences.append(f"{bins}; the temperature is fitted on the validation split.")
    return "".join(f"{sentence} " for sentence in sentences)


LIKENESS = {
    "agreement": ("agreement with", ".4f"),
    "teacher_mae": ("mean absolute difference from", ".4g"),
    "predictive_kl": ("predictive KL from", ".4f"),
}


def _by_teacher(result: Mapping[str, Any], columns: list[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Rows of the likeness to every teacher, where there are several."""
    return [
        (f"{title} teacher {place + 1}", [_number(each[place], key, form) if each else "" for each in found])
        for found in [[result[model].get("by_teacher") for _, model in columns]]
        for place, likeness in enumerate(result["student"].get("by_teacher", []))
        for key, (title, form) in LIKENESS.items()
        if key in likeness
    ]


def table(result: Mapping[str, Any]) -> str:
    columns = [
        ("teacher", "teacher"),
        ("student alone", "baseline"),
        ("student distilled", "student"),
        ("… in int8", "int8"),
    ]
    columns = [(title, key) for title, key in columns if result[key] is not None]
    top = result["student"].get("top_k")
    rows: list[tuple[str, list[str]]] = [
        (title, [_number(result[model], key, form) for _, model in columns])
        for title, key, form in (
            ("accuracy", "accuracy", ".4f"),
            (f"top-{top} accuracy", "top_k_accuracy", ".4f"),
            ("negative log-likelihood", "nll", ".4f"),
            ("expected calibration error", "ece", ".4f"),
            ("… after temperature scaling", "ece_scaled", ".4f"),
            ("macro F1", "macro_f1", ".4f"),
            ("area under the ROC curve", "auroc", ".4f"),
            ("mean absolute error", "mae", ".4g"),
            ("root of the mean squared error", "rmse", ".4g"),
            ("R²", "r2", ".4f"),
            ("recall at 1", "recall_at_1", ".4f"),
            ("recall at 5", "recall_at_5", ".4f"),
            ("agreement with the teacher", "agreement", ".4f"),
            ("mean absolute difference from the teacher", "teacher_mae", ".4g"),
            ("predictive KL from the teacher", "predictive_kl", ".4f"),
            ("parameters", "parameters", ",d"),
            ("multiply-adds, doubled (FLOPs)", "flops", ",d"),
            ("bytes of weights", "bytes", ",d"),
        )
        if key in result["student"]
    ]
    rows += _by_teacher(result, columns)
    if result["int8"] is not None:
        sizes = {"student": "float_file_bytes", "int8": "file_bytes"}
        cells = [format(result["int8"][sizes[of]], ",d") if of in sizes else "" for _, of in columns]
        rows.append(("bytes of the ONNX file", cells))
    latencies = [result[model].get("latency_ms", {}).get("p50") for _, model in columns]
    rows.append(("latency p50, ms", [f"{each:.3f}" if each is not None else "unknown" for each in latencies]))
    rates = [result[model].get("samples_per_second") for _, model in columns]
    cells = [f"{each:,.0f}" if each is not None else "unknown" for each in rates]
    rows.append(("samples a second, in batches of 64", cells))
    lines = [f"| | {' | '.join(title for title, _ in columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    return "\n".join([*lines, *(f"| {title} | {' | '.join(cells)} |" for title, cells in rows)])


def _number(values: Mapping[str, Any], key: str, form: str) -> str:
    if key not in values:
        return ""
    return format(values[key], form) if values[key] is not None else "unknown"


def gain(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return ""
    low, high = gain["interval"]
    name = gain["score"]
    points = f"{gain[name] * 100:+.2f} points, 95% interval {low * 100:+.2f} to {high * 100:+.2f}"
    if name == "mae":
        points = f"an error less by {gain[name]:+.4g}, 95% interval {low:+.4g} to {high:+.4g}"
    text = f"\nGain of distillation over the same student trained on the labels alone: {points} ({gain['method']})."
    if (flips := gain.get("sign_flips")) is not None:
        return f"{text} Randomisation test of the sign ({flips['method']}): p = {flips['p']:.2g}.\n"
    test = gain.get("mcnemar")
    if test is None:
        return f"{text}\n"
    return (
        f"{text} McNemar's test ({test['method']}): {test['only_student_right']} samples only the distilled student has"
        f" right, {test['only_baseline_right']} only the other, p = {test['p']:.2g}.\n"
    )


def faster(speedup: Mapping[str, Any] | None) -> str:
    if speedup is None:
        return ""
    return (
        f"The student is {speedup['latency']:.1f} times as fast as the teacher with one sample, and"
        f" {speedup['throughput']:.1f} times with many.\n"
    )
