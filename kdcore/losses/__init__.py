"""Every loss, as one explicit list: a new one is a file and its two names here. What
installed packages add is appended (`kdcore.plugins`)."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from kdcore.losses.absolute_teacher import AbsoluteTeacherConfig, absolute_teacher
from kdcore.losses.activation_boundary import ActivationBoundaryConfig, activation_boundary
from kdcore.losses.adversarial import AdversarialConfig, adversarial
from kdcore.losses.attention_transfer import AttentionTransferConfig, attention_transfer
from kdcore.losses.base import BaseLossConfig, Batch, Context, LossError, Rival, Shapes, Term, Views, WhenRead
from kdcore.losses.binary_cross_entropy import BinaryCrossEntropyConfig, binary_cross_entropy
from kdcore.losses.binary_kd import BinaryKDConfig, binary_kd
from kdcore.losses.contrastive import ContrastiveConfig, contrastive
from kdcore.losses.correlation_congruence import CorrelationCongruenceConfig, correlation_congruence
from kdcore.losses.cross_entropy import CrossEntropyConfig, cross_entropy
from kdcore.losses.dist import DISTConfig, dist
from kdcore.losses.dkd import DKDConfig, dkd
from kdcore.losses.factor_transfer import FactorTransferConfig, factor_transfer
from kdcore.losses.flow_of_solution import FlowOfSolutionConfig, flow_of_solution
from kdcore.losses.hard_distillation import HardDistillationConfig, hard_distillation
from kdcore.losses.hint import HintConfig, hint
from kdcore.losses.inner_heads import InnerHeadsConfig, inner_heads
from kdcore.losses.instance_graph import InstanceGraphConfig, instance_graph
from kdcore.losses.jsd import JSDConfig, jsd
from kdcore.losses.kd import KDConfig, kd
from kdcore.losses.knowledge_matching import KnowledgeMatchingConfig, knowledge_matching
from kdcore.losses.logit_mse import LogitMSEConfig, logit_mse
from kdcore.losses.mse import MSEConfig, mse
from kdcore.losses.multi_head_graph import MultiHeadGraphConfig, multi_head_graph
from kdcore.losses.multi_teacher import MultiTeacherConfig, multi_teacher
from kdcore.losses.mutual import MutualConfig, mutual
from kdcore.losses.neuron_selectivity import NeuronSelectivityConfig, neuron_selectivity
from kdcore.losses.nkd import NKDConfig, nkd
from kdcore.losses.overhaul import OverhaulConfig, overhaul
from kdcore.losses.probabilistic_transfer import ProbabilisticTransferConfig, probabilistic_transfer
from kdcore.losses.relative_teacher import RelativeTeacherConfig, relative_teacher
from kdcore.losses.review import ReviewConfig, hierarchical_context, review
from kdcore.losses.rkd_angle import RKDAngleConfig, rkd_angle
from kdcore.losses.rkd_distance import RKDDistanceConfig, rkd_distance
from kdcore.losses.semckd import SemCKDConfig, semckd
from kdcore.losses.similarity_preserving import SimilarityPreservingConfig, similarity_preserving
from kdcore.losses.simkd import SimKDConfig, simkd
from kdcore.losses.singular_value import SingularValueConfig, singular_value
from kdcore.losses.soft_cross_entropy import SoftCrossEntropyConfig, soft_cross_entropy
from kdcore.losses.srrl import SRRLConfig, srrl
from kdcore.losses.variational_information import VariationalInformationConfig, variational_information
from kdcore.plugins import union, with_plugins

LossConfig = Annotated[
    CrossEntropyConfig
    | KDConfig
    | SoftCrossEntropyConfig
    | LogitMSEConfig
    | HardDistillationConfig
    | BinaryKDConfig
    | JSDConfig
    | DKDConfig
    | DISTConfig
    | NKDConfig
    | MSEConfig
    | BinaryCrossEntropyConfig
    | MultiTeacherConfig
    | HintConfig
    | KnowledgeMatchingConfig
    | AttentionTransferConfig
    | SimilarityPreservingConfig
    | NeuronSelectivityConfig
    | VariationalInformationConfig
    | FlowOfSolutionConfig
    | FactorTransferConfig
    | ActivationBoundaryConfig
    | OverhaulConfig
    | ReviewConfig
    | SingularValueConfig
    | ContrastiveConfig
    | SimKDConfig
    | SemCKDConfig
    | SRRLConfig
    | RKDDistanceConfig
    | RKDAngleConfig
    | ProbabilisticTransferConfig
    | CorrelationCongruenceConfig
    | AbsoluteTeacherConfig
    | RelativeTeacherConfig
    | InstanceGraphConfig
    | MultiHeadGraphConfig
    | AdversarialConfig
    | MutualConfig
    | InnerHeadsConfig,
    Field(discriminator="type"),
]
LOSSES: tuple[type[BaseLossConfig], ...] = (
    CrossEntropyConfig,
    KDConfig,
    SoftCrossEntropyConfig,
    LogitMSEConfig,
    HardDistillationConfig,
    BinaryKDConfig,
    JSDConfig,
    DKDConfig,
    DISTConfig,
    NKDConfig,
    MSEConfig,
    BinaryCrossEntropyConfig,
    MultiTeacherConfig,
    HintConfig,
    KnowledgeMatchingConfig,
    AttentionTransferConfig,
    SimilarityPreservingConfig,
    NeuronSelectivityConfig,
    VariationalInformationConfig,
    FlowOfSolutionConfig,
    FactorTransferConfig,
    ActivationBoundaryConfig,
    OverhaulConfig,
    ReviewConfig,
    SingularValueConfig,
    ContrastiveConfig,
    SimKDConfig,
    SemCKDConfig,
    SRRLConfig,
    RKDDistanceConfig,
    RKDAngleConfig,
    ProbabilisticTransferConfig,
    CorrelationCongruenceConfig,
    AbsoluteTeacherConfig,
    RelativeTeacherConfig,
    InstanceGraphConfig,
    MultiHeadGraphConfig,
    AdversarialConfig,
    MutualConfig,
    InnerHeadsConfig,
)
if not TYPE_CHECKING:
    LOSSES = with_plugins("loss", BaseLossConfig, LOSSES)
    LossConfig = union(LOSSES)


def default_losses() -> list[LossConfig]:
    """0.1 · cross_entropy + 0.9 · kd at T 4: Hinton's loss with the weights of the CIFAR comparisons."""
    return [CrossEntropyConfig(weight=0.1), KDConfig(weight=0.9, temperature=4.0)]


__all__ = [
    "AbsoluteTeacherConfig",
    "ActivationBoundaryConfig",
    "AdversarialConfig",
    "AttentionTransferConfig",
    "BaseLossConfig",
    "Batch",
    "BinaryCrossEntropyConfig",
    "BinaryKDConfig",
    "Context",
    "ContrastiveConfig",
    "CorrelationCongruenceConfig",
    "CrossEntropyConfig",
    "DISTConfig",
    "DKDConfig",
    "FactorTransferConfig",
    "FlowOfSolutionConfig",
    "HardDistillationConfig",
    "HintConfig",
    "InnerHeadsConfig",
    "InstanceGraphConfig",
    "JSDConfig",
    "KDConfig",
    "KnowledgeMatchingConfig",
    "LOSSES",
    "LogitMSEConfig",
    "LossConfig",
    "LossError",
    "MSEConfig",
    "MultiHeadGraphConfig",
    "MultiTeacherConfig",
    "MutualConfig",
    "NKDConfig",
    "NeuronSelectivityConfig",
    "OverhaulConfig",
    "ProbabilisticTransferConfig",
    "RKDAngleConfig",
    "RKDDistanceConfig",
    "RelativeTeacherConfig",
    "ReviewConfig",
    "Rival",
    "SRRLConfig",
    "SemCKDConfig",
    "Shapes",
    "SimKDConfig",
    "SimilarityPreservingConfig",
    "SingularValueConfig",
    "SoftCrossEntropyConfig",
    "Term",
    "VariationalInformationConfig",
    "Views",
    "WhenRead",
    "absolute_teacher",
    "activation_boundary",
    "adversarial",
    "attention_transfer",
    "binary_cross_entropy",
    "binary_kd",
    "contrastive",
    "correlation_congruence",
    "cross_entropy",
    "default_losses",
    "dist",
    "dkd",
    "factor_transfer",
    "flow_of_solution",
    "hard_distillation",
    "hierarchical_context",
    "hint",
    "inner_heads",
    "instance_graph",
    "jsd",
    "kd",
    "knowledge_matching",
    "logit_mse",
    "mse",
    "multi_head_graph",
    "multi_teacher",
    "mutual",
    "neuron_selectivity",
    "nkd",
    "overhaul",
    "probabilistic_transfer",
    "relative_teacher",
    "review",
    "rkd_angle",
    "rkd_distance",
    "semckd",
    "similarity_preserving",
    "simkd",
    "singular_value",
    "soft_cross_entropy",
    "srrl",
    "variational_information",
]
