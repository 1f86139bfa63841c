"""Figures that others published on adapters, as the seed lectures repeat them: drawn beside ours, never among them.

A value is the mean; ± is what the source gives, if it gives one. Model names are the source's.
"""

from __future__ import annotations

_HU = "Hu et al. 2021, arXiv:2106.09685"
_TASKS = ("MNLI", "SST-2", "MRPC", "CoLA", "QNLI", "QQP", "RTE", "STS-B", "average")
_GLUE: tuple[tuple[str, str, float, tuple[float, ...]], ...] = (
    ("RoBERTa-base", "full", 125.0, (87.6, 94.8, 90.2, 63.6, 92.8, 91.9, 78.7, 91.2, 86.4)),
    ("RoBERTa-base", "bitfit", 0.1, (84.7, 93.7, 92.7, 62.0, 91.8, 84.0, 81.5, 90.8, 85.2)),
    ("RoBERTa-base", "AdapterDrop", 0.3, (87.1, 94.2, 88.5, 60.8, 93.1, 90.2, 71.5, 89.7, 84.4)),
    ("RoBERTa-base", "AdapterDrop", 0.9, (87.3, 94.7, 88.4, 62.6, 93.0, 90.6, 75.9, 90.3, 85.4)),
    ("RoBERTa-base", "lora", 0.3, (87.5, 95.1, 89.7, 63.4, 93.3, 90.8, 86.6, 91.5, 87.2)),
    ("RoBERTa-large", "full", 355.0, (90.2, 96.4, 90.9, 68.0, 94.7, 92.2, 86.6, 92.4, 88.9)),
    ("RoBERTa-large", "lora", 0.8, (90.6, 96.2, 90.9, 68.2, 94.9, 91.6, 87.4, 92.6, 89.0)),
    ("RoBERTa-large", "bottleneck-pfeiffer", 3.0, (90.2, 96.1, 90.2, 68.3, 94.8, 91.9, 83.8, 92.1, 88.4)),
    ("RoBERTa-large", "bottleneck-pfeiffer", 0.8, (90.5, 96.6, 89.7, 67.8, 94.8, 91.7, 80.1, 91.9, 87.9)),
    ("RoBERTa-large", "bottleneck", 6.0, (89.9, 96.2, 88.7, 66.5, 94.7, 92.1, 83.4, 91.0, 87.8)),
    ("RoBERTa-large", "bottleneck", 0.8, (90.3, 96.3, 87.7, 66.3, 94.7, 91.5, 72.9, 91.5, 86.4)),
    ("RoBERTa-large", "lora, as the adapters above", 0.8, (90.6, 96.2, 90.2, 68.2, 94.8, 91.6, 85.2, 92.3, 88.6)),
    ("DeBERTa-XXL", "full", 1500.0, (91.8, 97.2, 92.0, 72.0, 96.0, 92.7, 93.9, 92.9, 91.1)),
    ("DeBERTa-XXL", "lora", 4.7, (91.9, 96.9, 92.6, 72.4, 96.0, 92.9, 94.9, 93.0, 91.3)),
)
GLUE = [
    {"model": model, "method": method, "trainable_millions": millions}
    | {f"GLUE {task}": value for task, value in zip(_TASKS, values, strict=True)}
    | {"source": f"{_HU}, table 2"}
    for model, method, millions, values in _GLUE
]
_METRICS = ("BLEU", "NIST", "MET", "ROUGE-L", "CIDEr")
_E2E: tuple[tuple[str, str, float, tuple[float, ...]], ...] = (
    ("GPT-2 M", "full", 354.92, (68.2, 8.62, 46.2, 71.0, 2.47)),
    ("GPT-2 M", "bottleneck (Lin et al.)", 0.37, (66.3, 8.41, 45.0, 69.8, 2.40)),
    ("GPT-2 M", "bottleneck (Lin et al.)", 11.09, (68.9, 8.71, 46.1, 71.3, 2.47)),
    ("GPT-2 M", "bottleneck", 11.09, (67.3, 8.50, 46.0, 70.7, 2.44)),
    ("GPT-2 M", "full, two layers", 25.19, (68.1, 8.59, 46.0, 70.8, 2.41)),
    ("GPT-2 M", "prefix (PreLayer)", 0.35, (69.7, 8.81, 46.1, 71.4, 2.49)),
    ("GPT-2 M", "lora", 0.35, (70.4, 8.85, 46.8, 71.8, 2.53)),
    ("GPT-2 L", "full", 774.03, (68.5, 8.78, 46.0, 69.9, 2.45)),
    ("GPT-2 L", "bottleneck (Lin et al.)", 0.88, (69.1, 8.68, 46.3, 71.4, 2.49)),
    ("GPT-2 L", "bottleneck (Lin et al.)", 23.00, (68.9, 8.70, 46.1, 71.3, 2.45)),
    ("GPT-2 L", "prefix (PreLayer)", 0.77, (70.3, 8.85, 46.2, 71.7, 2.47)),
    ("GPT-2 L", "lora", 0.77, (70.4, 8.89, 46.8, 72.0, 2.47)),
)
E2E = [
    {"model": model, "method": method, "trainable_millions": millions}
    | {f"E2E {metric}": value for metric, value in zip(_METRICS, values, strict=True)}
    | {"source": f"{_HU}, table 3"}
    for model, method, millions, values in _E2E
]
_GPT3: tuple[tuple[str, float, tuple[float, float, str]], ...] = (
    ("full", 175255.8, (73.8, 89.5, "52.0/28.0/44.5")),
    ("bitfit", 14.2, (71.3, 91.0, "51.3/27.4/43.5")),
    ("prompt (PreEmbed)", 3.2, (63.1, 88.6, "48.3/24.2/40.5")),
    ("prefix (PreLayer)", 20.2, (70.1, 89.5, "50.8/27.3/43.5")),
    ("bottleneck", 7.1, (71.9, 89.8, "53.0/28.9/44.8")),
    ("bottleneck", 40.1, (73.2, 91.5, "53.2/29.0/45.1")),
    ("lora", 4.7, (73.4, 91.7, "53.8/29.8/45.9")),
    ("lora", 37.7, (74.0, 91.6, "53.4/29.2/45.1")),
)
GPT3 = [
    {"model": "GPT-3", "method": method, "trainable_millions": millions, "WikiSQL": wiki, "MNLI-m": mnli}
    | {"SAMSum R1/R2/RL": samsum, "source": f"{_HU}, table 4"}
    for method, millions, (wiki, mnli, samsum) in _GPT3
]
_RANKS = (1, 2, 4, 8, 64)
_BY_RANK: dict[tuple[str, str], tuple[float, ...]] = {
    ("WikiSQL", "q"): (68.8, 69.6, 70.5, 70.4, 70.0),
    ("WikiSQL", "q,v"): (73.4, 73.3, 73.7, 73.8, 73.5),
    ("WikiSQL", "q,k,v,o"): (74.1, 73.7, 74.0, 74.0, 73.9),
    ("MultiNLI", "q"): (90.7, 90.9, 91.1, 90.7, 90.7),
    ("MultiNLI", "q,v"): (91.3, 91.4, 91.3, 91.6, 91.4),
    ("MultiNLI", "q,k,v,o"): (91.2, 91.7, 91.7, 91.5, 91.4),
}
RANKS = [
    {"model": "GPT-3", "task": task, "targets": targets, "rank": rank, "accuracy_percent": value}
    | {"source": f"{_HU}, table 6; ±0.5 on WikiSQL, ±0.1 on MultiNLI"}
    for (task, targets), values in _BY_RANK.items()
    for rank, value in zip(_RANKS, values, strict=True)
]
_WHERE: tuple[tuple[str, int, float, float], ...] = (
    ("q", 8, 70.4, 91.0),
    ("k", 8, 70.0, 90.8),
    ("v", 8, 73.0, 91.0),
    ("o", 8, 73.2, 91.3),
    ("q,k", 4, 71.4, 91.3),
    ("q,v", 4, 73.7, 91.3),
    ("q,k,v,o", 2, 73.7, 91.7),
)
TARGETS = [
    {"model": "GPT-3", "targets": targets, "rank": rank, "trainable_millions": 18.0, "WikiSQL": wiki, "MultiNLI": mnli}
    | {"source": f"{_HU}, table 5"}
    for targets, rank, wiki, mnli in _WHERE
]
