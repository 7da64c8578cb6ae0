"""The methods of benchmarks/methods.py: for each its stages, each a list of losses; weights are the papers', and where
those drowned the labels on a pair, a hundredth of them once more."""

from typing import Any

CE = {"type": "cross_entropy"}
KD = [{"type": "cross_entropy", "weight": 0.1}, {"type": "kd", "weight": 0.9}]
UP = {"type": "linear", "start": 0, "end": 1, "epochs": 2}
STUDENT = "the pair's student"
"""In the place of a peer: benchmarks/methods.py puts the student's own model there."""

Losses = list[dict[str, Any]]

METHODS: dict[str, list[Losses]] = {
    "labels alone": [[CE]],
    "kd": [KD],
    "kd, standardized": [[{**CE, "weight": 0.1}, {"type": "kd", "weight": 9, "temperature": 2, "standardize": True}]],
    "soft_cross_entropy": [[{**CE, "weight": 0.1}, {"type": "soft_cross_entropy", "weight": 0.9}]],
    "logit_mse": [[{**CE, "weight": 0.1}, {"type": "logit_mse", "weight": 0.9}]],
    "hard_distillation": [[{**CE, "weight": 0.5}, {"type": "hard_distillation", "weight": 0.5}]],
    "binary_kd": [[CE, {"type": "binary_kd"}]],
    "jsd": [[{**CE, "weight": 0.1}, {"type": "jsd", "weight": 0.9, "temperature": 4}]],
    "dkd": [[CE, {"type": "dkd", "weight_schedule": UP}]],
    "dist": [[CE, {"type": "dist", "weight": 2, "temperature": 4}]],
    "nkd": [[{"type": "nkd"}]],
    "nkd + cross_entropy": [[CE, {"type": "nkd"}]],
    "hint, then kd": [[{"type": "hint"}], KD],
    "knowledge_matching": [[CE, {"type": "knowledge_matching"}]],
    "attention_transfer": [[CE, {"type": "attention_transfer"}]],
    "similarity_preserving": [[CE, {"type": "similarity_preserving"}]],
    "neuron_selectivity": [[CE, {"type": "neuron_selectivity"}]],
    "variational_information": [[CE, {"type": "variational_information"}]],
    "flow_of_solution, then labels": [[{"type": "flow_of_solution"}], [CE]],
    "factor_transfer": [[CE, {"type": "factor_transfer", "paraphraser_epochs": 2}]],
    "activation_boundary, then kd": [[{"type": "activation_boundary"}], KD],
    "overhaul": [[CE, {"type": "overhaul"}]],
    "review": [[CE, {"type": "review", "weight_schedule": UP}]],
    "singular_value": [[CE, {"type": "singular_value"}]],
    "contrastive": [[CE, {"type": "contrastive"}]],
    "simkd": [[CE, {"type": "simkd"}]],
    "semckd": [[CE, {"type": "semckd"}]],
    "srrl": [[CE, {"type": "srrl"}]],
    "rkd_distance": [[CE, {"type": "rkd_distance"}]],
    "rkd_distance + rkd_angle": [[CE, {"type": "rkd_distance"}, {"type": "rkd_angle"}]],
    "probabilistic_transfer": [[CE, {"type": "probabilistic_transfer"}]],
    "correlation_congruence": [[CE, {"type": "correlation_congruence"}]],
    "absolute_teacher": [[CE, {"type": "absolute_teacher"}]],
    "relative_teacher": [[CE, {"type": "relative_teacher"}]],
    "instance_graph": [[CE, {"type": "instance_graph"}]],
    "multi_head_graph": [[CE, {"type": "multi_head_graph", "attention_epochs": 2}]],
    "adversarial + kd": [[*KD, {"type": "adversarial", "weight": 0.1}]],
    "mutual": [[CE, {"type": "mutual", "peer": STUDENT}]],
    "inner_heads": [[CE, {"type": "inner_heads"}]],
    "attention_transfer + kd": [[*KD, {"type": "attention_transfer"}]],
    "similarity_preserving + kd": [[*KD, {"type": "similarity_preserving"}]],
    "attention_transfer, weight 10": [[CE, {"type": "attention_transfer", "weight": 10}]],
    "similarity_preserving, weight 30": [[CE, {"type": "similarity_preserving", "weight": 30}]],
    "neuron_selectivity, weight 0.5": [[CE, {"type": "neuron_selectivity", "weight": 0.5}]],
    "probabilistic_transfer, weight 300": [[CE, {"type": "probabilistic_transfer", "weight": 300}]],
    "rkd_distance, weight 0.25": [[CE, {"type": "rkd_distance", "weight": 0.25}]],
    "relative_teacher, weight 0.01": [[CE, {"type": "relative_teacher", "weight": 0.01}]],
    "factor_transfer, weight 2": [[CE, {"type": "factor_transfer", "weight": 2, "paraphraser_epochs": 2}]],
    "singular_value, weight 0.01": [[CE, {"type": "singular_value", "weight": 0.01}]],
    "multi_head_graph, weight 0.01": [[CE, {"type": "multi_head_graph", "weight": 0.01, "attention_epochs": 2}]],
}
